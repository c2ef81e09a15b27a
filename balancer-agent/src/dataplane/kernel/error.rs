//! What can go wrong on the kernel side, in words that say what to do.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use super::attach::AttachError;

/// Why the kernel side could not be opened or changed. All of these are ours or
/// the host's; no client or backend causes one. Retrying is safe for all of them:
/// a failed call leaves what steers packets as it was.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// No bpf file system, and none could be mounted.
    #[error(
        "no bpf file system at {path}, and mounting one failed: {source}; \
             `mount -t bpf bpf {path}` as root makes one"
    )]
    NoBpfFs {
        /// Where it was looked for.
        path: PathBuf,
        /// What `mount` said.
        source: io::Error,
    },
    /// The configured pin directory is not on a bpf file system.
    #[error("pin directory {path} is not on a bpf file system (such as /sys/fs/bpf)")]
    NotBpfFs {
        /// The directory.
        path: PathBuf,
    },
    /// Another process has the instance open.
    #[error("another agent is running with {path}: only one can steer a network namespace")]
    InUse {
        /// The pin directory.
        path: PathBuf,
    },
    /// The pinned maps were made by a build with other layouts.
    #[error(
        "the maps in {path} have layout version {pinned}, this build needs {ours}: run the \
         build that made them, or remove them with `balancer unload`, which stops steering \
         and forgets their flows"
    )]
    AbiMismatch {
        /// The pin directory.
        path: PathBuf,
        /// Version in the pinned header.
        pinned: u32,
        /// [`common::ABI_VERSION`].
        ours: u32,
    },
    /// The pinned maps say the same version but do not fit.
    #[error(
        "the maps in {path} can't be used: {what}; `balancer unload` removes them, which \
         stops steering and forgets their flows"
    )]
    Damaged {
        /// The pin directory.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// The pinned maps steer another network namespace that still lives.
    #[error(
        "the maps in {path} steer another network namespace: configure another `pin_dir`, \
         or none"
    )]
    OtherNamespace {
        /// The pin directory.
        path: PathBuf,
    },
    /// The kernel refused the program or a map.
    #[error("the kernel does not accept the program: {}{}", chain(.source.as_ref()), hint(.source.as_ref()))]
    Load {
        /// What aya or the verifier says.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The kernel's verifier rejects the program: this kernel is too old for it, or
    /// the program is wrong.
    #[error("the kernel's verifier rejects the program ({source}); its last words:\n{log}")]
    Rejected {
        /// What the system call said.
        source: io::Error,
        /// The end of the verifier's log.
        log: String,
    },
    /// The object does not hold what the agent expects.
    #[error("the kernel program's object does not fit this agent: {what}")]
    Object {
        /// What does not fit.
        what: String,
    },
    /// At least one interface could not be attached.
    #[error("{}", list(.0))]
    Attach(Vec<AttachError>),
    /// A file or system call.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

impl KernelError {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// From the loading of a program, whose verifier log can be very long.
    pub(super) fn program(error: aya::programs::ProgramError) -> Self {
        use aya::programs::ProgramError::LoadError;
        match error {
            LoadError {
                io_error,
                verifier_log,
            } if !verifier_log.to_string().is_empty() => {
                let log = verifier_log.to_string();
                tracing::debug!(log, "the verifier's whole log");
                Self::Rejected {
                    source: io_error,
                    log: last_lines(&log, VERIFIER_LINES).into(),
                }
            }
            other => Self::load(other),
        }
    }

    pub(super) fn load(source: impl Error + Send + Sync + 'static) -> Self {
        Self::Load {
            source: Box::new(source),
        }
    }
}

/// Lines of the verifier's log in an error: the reason and a little context.
const VERIFIER_LINES: usize = 20;

fn last_lines(text: &str, count: usize) -> &str {
    let text = text.trim_end();
    match text.rmatch_indices('\n').nth(count - 1) {
        Some((at, _)) => &text[at + 1..],
        None => text,
    }
}

/// An error and its causes in one line; causes that the error already quotes are
/// left out.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// The system's error number at the root of an error, where there is one.
pub(super) fn errno(error: &(dyn Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return io.raw_os_error();
        }
        next = error.source();
    }
    None
}

fn hint(error: &(dyn Error + 'static)) -> &'static str {
    match errno(error) {
        Some(libc::EPERM) => {
            " (needs root, or the capabilities CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON)"
        }
        Some(libc::ENOMEM) => " (not enough memory: lower the table sizes in [xdp])",
        _ => "",
    }
}

fn list(errors: &[AttachError]) -> String {
    errors
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

impl From<crate::dataplane::MapFailure> for KernelError {
    fn from(failure: crate::dataplane::MapFailure) -> Self {
        let what = format!("cannot map {} into memory", failure.name);
        Self::io(what)(failure.error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] io::Error);

    #[test]
    fn causes_and_hints_are_told() {
        let error = KernelError::load(Outer(io::Error::from_raw_os_error(libc::EPERM)));
        let text = error.to_string();
        assert!(text.contains("outer: Operation not permitted"), "{text}");
        assert!(text.contains("needs root"), "{text}");
    }

    #[test]
    fn the_last_lines_of_a_log() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("a\nb\nc", 3), "a\nb\nc");
        assert_eq!(last_lines("a", 2), "a");
    }

    #[test]
    fn both_versions_are_named() {
        let text = KernelError::AbiMismatch {
            path: "/sys/fs/bpf/balancer/netns-1".into(),
            pinned: 7,
            ours: 9,
        }
        .to_string();
        assert!(
            text.contains("version 7") && text.contains("needs 9"),
            "{text}"
        );
        assert!(text.contains("balancer unload"), "{text}");
    }
}
