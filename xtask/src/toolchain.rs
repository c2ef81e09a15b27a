//! The compilers that can build for the kernel: `core` is built from source, so the
//! compiler must come with its library's source, and the linker must understand its
//! bitcode.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::ValueEnum;

use crate::place;

/// The linker's version that fits aya-ebpf 0.2 and these compilers.
pub const LINKER_VERSION: &str = "0.13.0";
/// The LLVM of Debian's compiler.
pub const DEBIAN_LLVM: u32 = 22;

/// Debian's compiler, whatever else is in the path.
pub const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// Where a kernel compiler comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Source {
    /// Debian's rustc-web with rust-web-src.
    Debian,
    /// rustup's nightly with the component rust-src.
    Nightly,
}

/// A compiler that is there, with its library's source.
#[derive(Clone, Debug)]
pub struct Toolchain {
    pub source: Source,
    /// As rustc says it.
    pub version: String,
    /// The major version of the LLVM that writes its bitcode.
    pub llvm: u32,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match self.source {
            Source::Debian => "Debian",
            Source::Nightly => "rustup nightly",
        };
        write!(f, "{source}, {}, LLVM {}", self.version, self.llvm)
    }
}

/// The wanted toolchain; without a wish Debian's, else nightly. A toolchain whose LLVM
/// nothing on this machine can link for is not one.
pub fn find(wish: Option<Source>) -> Option<Toolchain> {
    let order: &[Source] = match &wish {
        Some(source) => std::slice::from_ref(source),
        None => &[Source::Debian, Source::Nightly],
    };
    order
        .iter()
        .filter_map(|&source| probe(source))
        .find(|toolchain| llvm_config(toolchain.llvm).exists() || linker(toolchain.llvm).is_some())
}

/// Whether rustup has a nightly at all, and whether that lacks its source.
pub fn nightly_without_source() -> bool {
    said(rustup_rustc().arg("-vV")).is_some() && probe(Source::Nightly).is_none()
}

/// The cargo of a toolchain, in an environment that the outer cargo has left no
/// traces in.
pub fn cargo(toolchain: &Toolchain) -> Command {
    let mut command = match toolchain.source {
        Source::Debian => Command::new("/usr/bin/cargo"),
        Source::Nightly => {
            let mut command = Command::new("rustup");
            command.args(["run", "nightly", "cargo"]);
            command
        }
    };
    clean(&mut command);
    if toolchain.source == Source::Debian {
        command
            .env("RUSTC", DEBIAN_RUSTC)
            .env("RUSTC_BOOTSTRAP", "1");
    }
    let mut path = vec![place::tools().join("bin"), llvm_bin(toolchain.llvm)];
    if toolchain.source == Source::Debian {
        path.push(PathBuf::from("/usr/bin"));
    }
    path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    if let Ok(path) = env::join_paths(path) {
        command.env("PATH", path);
    }
    command.current_dir(place::root());
    command
}

/// A linker for this LLVM: the project's own, else one in the path. Nothing when there
/// is none, or it is of another version.
pub fn linker(llvm: u32) -> Option<PathBuf> {
    let own = place::tools().join("bin/bpf-linker");
    let path = env::var_os("PATH").unwrap_or_default();
    let others = env::split_paths(&path).map(|dir| dir.join("bpf-linker"));
    std::iter::once(own)
        .chain(others)
        .filter(|candidate| candidate.is_file())
        .find(|candidate| fits(candidate, llvm))
}

fn fits(linker: &Path, llvm: u32) -> bool {
    let version = said(Command::new(linker).arg("--version"));
    if !version.is_some_and(|text| text.trim().ends_with(LINKER_VERSION)) {
        return false;
    }
    // It says nothing about its LLVM. Linked dynamically, the loader tells; a static
    // one is a release of 0.13, which carries the newest.
    match said(Command::new("ldd").arg(linker)) {
        Some(libraries) if libraries.contains("libLLVM") => {
            [format!("libLLVM-{llvm}"), format!("libLLVM.so.{llvm}")]
                .iter()
                .any(|name| libraries.contains(name))
        }
        _ => true,
    }
}

/// Where LLVM of a major version has its programs.
pub fn llvm_bin(llvm: u32) -> PathBuf {
    llvm_prefix(llvm).join("bin")
}

/// Where LLVM of a major version is.
pub fn llvm_prefix(llvm: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{llvm}"))
}

fn llvm_config(llvm: u32) -> PathBuf {
    llvm_bin(llvm).join("llvm-config")
}

fn probe(source: Source) -> Option<Toolchain> {
    let rustc = || match source {
        Source::Debian => {
            let mut command = Command::new(DEBIAN_RUSTC);
            clean(&mut command);
            command
        }
        Source::Nightly => rustup_rustc(),
    };
    if source == Source::Debian && !Path::new("/usr/bin/cargo").is_file() {
        return None;
    }
    let sysroot = PathBuf::from(said(rustc().args(["--print", "sysroot"]))?.trim());
    let core = sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs");
    if !core.is_file() {
        return None;
    }
    let verbose = said(rustc().arg("-vV"))?;
    let field = |name: &str| {
        let mut lines = verbose.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    };
    let llvm = field("LLVM version")?.split('.').next()?.parse().ok()?;
    let release = field("release")?.to_owned();
    // Debian 12's own rustc (1.63) can't build this workspace.
    let new_enough = minor(&release)? >= 95;
    new_enough.then(|| Toolchain {
        source,
        version: format!("rustc {release}"),
        llvm,
    })
}

fn minor(release: &str) -> Option<u32> {
    let mut parts = release.split('.');
    match parts.next()?.parse::<u32>().ok()? {
        1 => parts.next()?.parse().ok(),
        _ => None,
    }
}

fn rustup_rustc() -> Command {
    let mut command = Command::new("rustup");
    clean(&mut command);
    // Looking must not install anything.
    command.env("RUSTUP_AUTO_INSTALL", "0");
    command.args(["run", "nightly", "rustc"]);
    command
}

fn said(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).output().ok()?;
    let good = output.status.success();
    good.then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Takes away what would make another toolchain behave like the outer one, or build
/// this project's kernel code with flags that are meant for the host.
fn clean(command: &mut Command) {
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let prefixes = [
            "CARGO_BUILD_",
            "CARGO_PROFILE_",
            "CARGO_TARGET_",
            "RUSTC",
            "RUSTDOC",
        ];
        let inherited = prefixes.iter().any(|prefix| text.starts_with(prefix))
            || place::describes_caller(&text)
            || matches!(
                text.as_ref(),
                "CARGO"
                    | "CARGO_ENCODED_RUSTFLAGS"
                    | "CARGO_MAKEFLAGS"
                    | "LD_LIBRARY_PATH"
                    | "MAKEFLAGS"
                    | "RUSTFLAGS"
                    | "RUSTUP_TOOLCHAIN"
                    | "RUST_RECURSION_COUNT"
            );
        if inherited {
            command.env_remove(name);
        }
    }
}
