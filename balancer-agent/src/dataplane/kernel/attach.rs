//! Puts the program on interfaces and keeps it there: one pinned link for each.
//!
//! A pin is named `<interface index>_<mode>`. The index, because a device keeps
//! it when it is renamed and a name can come back with another device; the mode,
//! because the kernel does not tell it for a link. A link that is taken over gets
//! the new program by one atomic update: there is no moment without a program.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::ProgramError;
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::xdp::{XdpLink, XdpMode as AyaMode};
use nix::net::if_::if_nametoindex;

use super::error::{KernelError, chain, errno};
use super::instance::{links_in, remove_link};
use super::load::program;
use super::sys::{LinkInfo, is_veth};
use crate::model::XdpMode;

/// How the program runs on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachMode {
    /// In the driver.
    Native,
    /// In the stack's receive path: slower, works with every device.
    Generic,
}

impl fmt::Display for AttachMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl AttachMode {
    const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    /// Whether it is what the configuration asks for.
    const fn serves(self, wanted: XdpMode) -> bool {
        match wanted {
            XdpMode::Auto => true,
            XdpMode::Native => matches!(self, Self::Native),
            XdpMode::Generic => matches!(self, Self::Generic),
        }
    }

    const fn aya(self) -> AyaMode {
        match self {
            Self::Native => AyaMode::Driver,
            Self::Generic => AyaMode::Skb,
        }
    }
}

/// Why `auto` is generic on a veth device.
const VETH: &str = "a veth device: packets of sockets pass faster in the stack";

/// An interface that the program runs on.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Attached {
    /// Name of the interface.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// How the program runs there.
    pub mode: AttachMode,
    /// Why not native, where the configuration leaves it open.
    pub reason: Option<String>,
}

/// Why the program could not be put on an interface.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// The interface does not exist in our network namespace.
    #[error("{interface}: no such interface in this network namespace")]
    NoSuchInterface {
        /// Name of the interface.
        interface: String,
    },
    /// Another program is there.
    #[error(
        "{interface}: another XDP program is attached (see `ip link show dev {interface}`); \
         remove it first"
    )]
    Occupied {
        /// Name of the interface.
        interface: String,
    },
    /// The driver has no native XDP.
    #[error("{interface}: the driver has no native XDP; mode \"auto\" or \"generic\" works")]
    Unsupported {
        /// Name of the interface.
        interface: String,
    },
    /// Fewer receive queues than the other end has transmit queues.
    #[error(
        "{interface}: too few receive queues for native XDP: a veth end needs at least as many \
         as its peer has transmit queues (`ip link add ... numrxqueues N`), a card one transmit \
         queue per CPU (`ethtool -L {interface}`)"
    )]
    TooFewQueues {
        /// Name of the interface.
        interface: String,
    },
    /// Frames of the device's or its peer's size do not fit.
    #[error("{interface}: the MTU (or the veth peer's) is too large for native XDP; lower it")]
    MtuTooLarge {
        /// Name of the interface.
        interface: String,
    },
    /// Not allowed.
    #[error("{interface}: not permitted: needs root, or the capability CAP_NET_ADMIN")]
    NotPermitted {
        /// Name of the interface.
        interface: String,
    },
    /// The kernel has no XDP links.
    #[error("{interface}: this kernel has no XDP links; Linux 5.9 or later is needed")]
    KernelTooOld {
        /// Name of the interface.
        interface: String,
    },
    /// Anything else.
    #[error("{interface}: attaching in {mode} mode failed: {what}")]
    Other {
        /// Name of the interface.
        interface: String,
        /// How it was tried.
        mode: AttachMode,
        /// What the system said.
        what: String,
    },
}

impl AttachError {
    /// Name of the interface.
    pub fn interface(&self) -> &str {
        match self {
            Self::NoSuchInterface { interface }
            | Self::Occupied { interface }
            | Self::Unsupported { interface }
            | Self::TooFewQueues { interface }
            | Self::MtuTooLarge { interface }
            | Self::NotPermitted { interface }
            | Self::KernelTooOld { interface }
            | Self::Other { interface, .. } => interface,
        }
    }

    fn new(interface: &str, mode: AttachMode, error: &(dyn std::error::Error + 'static)) -> Self {
        let interface = interface.to_owned();
        match errno(error) {
            Some(libc::ENODEV | libc::ENXIO) => Self::NoSuchInterface { interface },
            Some(libc::EBUSY | libc::EEXIST) => Self::Occupied { interface },
            Some(libc::EOPNOTSUPP) => Self::Unsupported { interface },
            Some(libc::ENOSPC) => Self::TooFewQueues { interface },
            Some(libc::ERANGE) => Self::MtuTooLarge { interface },
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted { interface },
            _ => Self::Other {
                interface,
                mode,
                what: chain(error),
            },
        }
    }

    /// Whether generic mode can work where native mode failed like this.
    fn generic_may_work(&self) -> bool {
        !matches!(
            self,
            Self::NoSuchInterface { .. }
                | Self::Occupied { .. }
                | Self::NotPermitted { .. }
                | Self::KernelTooOld { .. }
        )
    }
}

/// The loaded program and where it runs.
pub(super) struct Attacher {
    ebpf: Ebpf,
    program_id: u32,
    links: PathBuf,
    wanted: Vec<String>,
    mode: XdpMode,
    attached: Vec<Attached>,
    failed: Vec<AttachError>,
}

/// A link that is pinned.
#[derive(Clone, Debug)]
struct Pin {
    path: PathBuf,
    ifindex: u32,
    mode: AttachMode,
    info: LinkInfo,
}

impl Pin {
    /// Whether the device that the pin is named for is still there.
    fn is_live(&self) -> bool {
        self.info.ifindex == self.ifindex
    }
}

impl Attacher {
    /// For a loaded program; attaches nothing yet. `links` is the folder of pins.
    pub fn new(mut ebpf: Ebpf, links: PathBuf) -> Result<Self, KernelError> {
        let info = program(&mut ebpf)?.info().map_err(KernelError::load)?;
        Ok(Self {
            program_id: info.id(),
            ebpf,
            links,
            wanted: Vec::new(),
            mode: XdpMode::default(),
            attached: Vec::new(),
            failed: Vec::new(),
        })
    }

    /// The kernel's number for the program.
    pub fn program_id(&self) -> u32 {
        self.program_id
    }

    /// Where the program runs.
    pub fn attached(&self) -> &[Attached] {
        &self.attached
    }

    /// Wanted interfaces where it does not run, and why.
    pub fn failed(&self) -> &[AttachError] {
        &self.failed
    }

    /// Makes the program run on these interfaces and no others, as far as that is
    /// possible; what is not is in [`Attacher::failed`]. Returns whether anything
    /// has changed.
    pub fn settle(&mut self, interfaces: &[String], mode: XdpMode) -> bool {
        let outcome = self.apply(interfaces, mode);
        self.adopt(interfaces, mode, outcome)
    }

    /// The same, all or nothing: when an interface that was not wanted before
    /// fails, everything stays as it was.
    ///
    /// # Errors
    /// The new interfaces that failed.
    pub fn change(&mut self, interfaces: &[String], mode: XdpMode) -> Result<bool, KernelError> {
        let outcome = self.apply(interfaces, mode);
        let fatal: Vec<_> = outcome
            .failed
            .iter()
            .filter(|e| !self.wanted.iter().any(|w| w == e.interface()))
            .cloned()
            .collect();
        if fatal.is_empty() {
            return Ok(self.adopt(interfaces, mode, outcome));
        }
        let (wanted, mode) = (self.wanted.clone(), self.mode);
        self.settle(&wanted, mode);
        Err(KernelError::Attach(fatal))
    }

    /// Looks again at the interfaces that are wanted: a device may have come,
    /// gone, or been made anew. Returns whether anything has changed.
    pub fn refresh(&mut self) -> bool {
        let (wanted, mode) = (self.wanted.clone(), self.mode);
        self.settle(&wanted, mode)
    }

    /// Attaches what is wanted; leaves what is not.
    fn apply(&mut self, interfaces: &[String], mode: XdpMode) -> Outcome {
        let pins = self.pins();
        let mut outcome = Outcome::default();
        for (i, interface) in interfaces.iter().enumerate() {
            if interfaces[..i].contains(interface) {
                continue;
            }
            match self.ensure(interface, mode, &pins) {
                Ok(attached) => outcome.attached.push(attached),
                Err(error) => outcome.failed.push(error),
            }
        }
        outcome
    }

    /// Makes an outcome the present state, and detaches what is not part of it.
    fn adopt(&mut self, interfaces: &[String], mode: XdpMode, outcome: Outcome) -> bool {
        let changed = self.attached != outcome.attached || self.failed != outcome.failed;
        self.wanted = interfaces.to_vec();
        self.mode = mode;
        self.attached = outcome.attached;
        self.failed = outcome.failed;
        for pin in self.pins().into_values().flatten() {
            let kept = self
                .attached
                .iter()
                .any(|a| (a.ifindex, a.mode) == (pin.ifindex, pin.mode));
            if !kept {
                remove_pin(&pin);
            }
        }
        changed
    }

    fn ensure(
        &mut self,
        interface: &str,
        mode: XdpMode,
        pins: &BTreeMap<u32, Vec<Pin>>,
    ) -> Result<Attached, AttachError> {
        let ifindex = if_nametoindex(interface).map_err(|_| AttachError::NoSuchInterface {
            interface: interface.into(),
        })?;
        let mut former = None;
        for pin in pins.get(&ifindex).into_iter().flatten() {
            if pin.is_live() && pin.mode.serves(mode) && former.is_none() {
                match self.take_over(pin) {
                    Ok(()) => return Ok(self.taken_over(interface, pin)),
                    // The device went away just now.
                    Err(error) if errno(&error) == Some(libc::ENOLINK) => {}
                    Err(error) => return Err(AttachError::new(interface, pin.mode, &error)),
                }
            }
            if pin.is_live() {
                former = Some(pin.mode);
            }
            remove_pin(pin);
        }
        let result = self.attach(interface, ifindex, mode);
        if let (Err(_), Some(former)) = (&result, former) {
            // Steering in a mode that is not asked for is better than none.
            let restored = self.attach_in(interface, ifindex, former);
            tracing::warn!(interface, mode = %former, ok = restored.is_ok(), "back to the former mode");
        }
        result
    }

    fn taken_over(&self, interface: &str, pin: &Pin) -> Attached {
        let known = self
            .attached
            .iter()
            .find(|a| a.ifindex == pin.ifindex && a.mode == pin.mode)
            .and_then(|a| a.reason.clone());
        let reason = match pin.mode {
            AttachMode::Native => None,
            AttachMode::Generic => known.or(Some("kept from an earlier start".into())),
        };
        Attached {
            interface: interface.into(),
            ifindex: pin.ifindex,
            mode: pin.mode,
            reason,
        }
    }

    fn attach(
        &mut self,
        interface: &str,
        ifindex: u32,
        mode: XdpMode,
    ) -> Result<Attached, AttachError> {
        let (mode, reason) = match mode {
            XdpMode::Native => {
                self.attach_in(interface, ifindex, AttachMode::Native)?;
                (AttachMode::Native, None)
            }
            XdpMode::Generic => {
                self.attach_in(interface, ifindex, AttachMode::Generic)?;
                (AttachMode::Generic, None)
            }
            // Packets of sockets come by veth as socket buffers; native XDP has each copied
            // into a frame and made a buffer again, which costs more than all the rest.
            XdpMode::Auto if is_veth(interface) => {
                self.attach_in(interface, ifindex, AttachMode::Generic)?;
                (AttachMode::Generic, Some(VETH.into()))
            }
            XdpMode::Auto => match self.attach_in(interface, ifindex, AttachMode::Native) {
                Ok(()) => (AttachMode::Native, None),
                Err(error) if error.generic_may_work() => {
                    self.attach_in(interface, ifindex, AttachMode::Generic)?;
                    (AttachMode::Generic, Some(error.to_string()))
                }
                Err(error) => return Err(error),
            },
        };
        Ok(Attached {
            interface: interface.into(),
            ifindex,
            mode,
            reason,
        })
    }

    fn attach_in(
        &mut self,
        interface: &str,
        ifindex: u32,
        mode: AttachMode,
    ) -> Result<(), AttachError> {
        let failed =
            |error: &(dyn std::error::Error + 'static)| AttachError::new(interface, mode, error);
        let program = program(&mut self.ebpf).map_err(|e| failed(&e))?;
        let link = program
            .attach_to_if_index(ifindex, mode.aya())
            .and_then(|id| program.take_link(id))
            .map_err(|e| failed(&e))?;
        // Anything but a descriptor can't be pinned, and goes when it is dropped.
        let link = FdLink::try_from(link).map_err(|_| AttachError::KernelTooOld {
            interface: interface.into(),
        })?;
        link.pin(pin_path(&self.links, ifindex, mode))
            .map_err(|e| failed(&e))?;
        Ok(())
    }

    /// Puts our program in the place of the one that the link carries.
    fn take_over(&mut self, pin: &Pin) -> Result<(), ProgramError> {
        if pin.info.program_id == self.program_id {
            return Ok(());
        }
        let link = PinnedLink::from_pin(&pin.path).map_err(link_error)?;
        let link = XdpLink::try_from(FdLink::from(link)).map_err(link_error)?;
        let program = program(&mut self.ebpf).map_err(|_| ProgramError::NotLoaded)?;
        let id = program.attach_to_link(link)?;
        // The pin holds the link; our descriptor need not.
        program.take_link(id).map(drop)
    }

    /// By interface index; a name that says nothing to us counts as index 0,
    /// which no interface has, so that it is swept away.
    fn pins(&self) -> BTreeMap<u32, Vec<Pin>> {
        let mut pins = BTreeMap::<u32, Vec<Pin>>::new();
        for (name, (path, info)) in links_in(&self.links) {
            let (ifindex, mode) = parse_pin(&name).unwrap_or((0, AttachMode::Generic));
            pins.entry(ifindex).or_default().push(Pin {
                path,
                ifindex,
                mode,
                info,
            });
        }
        pins
    }
}

#[derive(Default)]
struct Outcome {
    attached: Vec<Attached>,
    failed: Vec<AttachError>,
}

fn remove_pin(pin: &Pin) {
    if let Err(error) = remove_link(&pin.path) {
        tracing::warn!(%error, pin = %pin.path.display(), "cannot detach the program");
    }
}

fn link_error(error: LinkError) -> ProgramError {
    match error {
        LinkError::SyscallError(error) => ProgramError::SyscallError(error),
        other => ProgramError::IOError(io::Error::other(other.to_string())),
    }
}

fn pin_path(links: &Path, ifindex: u32, mode: AttachMode) -> PathBuf {
    links.join(format!("{ifindex}_{}", mode.name()))
}

fn parse_pin(name: &str) -> Option<(u32, AttachMode)> {
    let (ifindex, mode) = name.split_once('_')?;
    let mode = [AttachMode::Native, AttachMode::Generic]
        .into_iter()
        .find(|m| m.name() == mode)?;
    Some((ifindex.parse().ok()?, mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pins_name_says_index_and_mode() {
        for mode in [AttachMode::Native, AttachMode::Generic] {
            let path = pin_path(Path::new("/l"), 42, mode);
            let name = path.file_name().unwrap().to_str().unwrap();
            assert_eq!(parse_pin(name), Some((42, mode)));
        }
        assert_eq!(parse_pin("42_other"), None);
        assert_eq!(parse_pin("x_native"), None);
        assert_eq!(parse_pin("42"), None);
    }

    #[test]
    fn errors_say_what_to_do() {
        let error = |code| {
            AttachError::new(
                "eth7",
                AttachMode::Native,
                &io::Error::from_raw_os_error(code),
            )
        };
        let text = error(libc::ENOSPC).to_string();
        assert!(
            text.contains("eth7") && text.contains("numrxqueues"),
            "{text}"
        );
        assert!(
            error(libc::EBUSY)
                .to_string()
                .contains("another XDP program")
        );
        assert!(error(libc::EPERM).to_string().contains("needs root"));
        assert!(
            error(libc::ENODEV)
                .to_string()
                .contains("no such interface")
        );
        let text = error(libc::EIO).to_string();
        assert!(
            text.contains("native mode failed: Input/output error"),
            "{text}"
        );
        assert!(error(libc::ENOSPC).generic_may_work());
        assert!(!error(libc::EBUSY).generic_may_work());
    }
}
