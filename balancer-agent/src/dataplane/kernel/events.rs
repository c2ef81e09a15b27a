//! What the program tells on its own: passive signs, and its log.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::maps::{Map, MapData, RingBuf};
use aya_log::EbpfLogger;
use common::tables::Event;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use zerocopy::FromBytes;

use super::error::KernelError;

/// Reads [`Event`]s as they come. What was told while no agent ran comes first,
/// as far as the ring had room for it.
pub struct Events {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl Events {
    /// Must be called on a tokio runtime with I/O enabled.
    pub(super) fn new(map: Map) -> Result<Self, KernelError> {
        let ring = RingBuf::try_from(map).map_err(KernelError::load)?;
        let ring = readable(ring).map_err(KernelError::io("cannot wait for events"))?;
        Ok(Self { ring })
    }

    /// The next event. Cancel safe: an event is lost only when it was returned.
    ///
    /// # Errors
    /// What the runtime says when it can't wait any more.
    pub async fn next(&mut self) -> io::Result<Event> {
        loop {
            let mut guard = self.ring.readable_mut().await?;
            while let Some(record) = guard.get_inner_mut().next() {
                // A record that is too short for an event comes from another
                // build; it says nothing to us.
                if let Ok((event, _)) = Event::read_from_prefix(&record) {
                    return Ok(event);
                }
            }
            guard.clear_ready();
        }
    }
}

/// Carries the program's own log into the agent's. The program logs only what is
/// rare, and this side passes on no more than a few lines a second.
pub struct KernelLog {
    logger: EbpfLogger<Forward>,
}

impl KernelLog {
    /// `None` when the program has no log.
    pub(super) fn new(ebpf: &mut Ebpf) -> Option<Self> {
        match EbpfLogger::init_with_logger(ebpf, Forward::default()) {
            Ok(logger) => Some(Self { logger }),
            Err(aya_log::Error::MapNotFound) => None,
            Err(error) => {
                tracing::warn!(%error, "the kernel program's log can't be read");
                None
            }
        }
    }

    /// Forwards until cancelled.
    ///
    /// # Errors
    /// What the runtime says when it can't wait any more.
    pub async fn run(self) -> io::Result<()> {
        let mut logger = readable(self.logger)?;
        loop {
            let mut guard = logger.readable_mut().await?;
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    }
}

fn readable<T: AsFd + AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: both readers own the descriptor of their ring and keep it until they
    // are dropped.
    Ok(unsafe { AsyncFd::register_with_interest(inner, Interest::READABLE) }?)
}

/// Lines of the program's log passed on in one second.
const LINES_PER_SECOND: u32 = 10;

#[derive(Default)]
struct Forward {
    window: Mutex<Window>,
}

impl log::Log for Forward {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let verdict = match self.window.lock() {
            Ok(mut window) => window.admit(Instant::now()),
            Err(_) => return,
        };
        let Some(suppressed) = verdict else { return };
        if suppressed > 0 {
            tracing::warn!(target: "kernel", suppressed, "lines of the kernel program's log left out");
        }
        let line = record.args();
        match record.level() {
            log::Level::Error => tracing::error!(target: "kernel", "{line}"),
            log::Level::Warn => tracing::warn!(target: "kernel", "{line}"),
            log::Level::Info => tracing::info!(target: "kernel", "{line}"),
            log::Level::Debug | log::Level::Trace => tracing::debug!(target: "kernel", "{line}"),
        }
    }

    fn flush(&self) {}
}

#[derive(Default)]
struct Window {
    began: Option<Instant>,
    passed: u32,
    suppressed: u32,
}

impl Window {
    /// Whether a line may pass now, and if so, how many were left out before it.
    fn admit(&mut self, now: Instant) -> Option<u32> {
        let fresh = self
            .began
            .is_none_or(|began| now.duration_since(began) >= Duration::from_secs(1));
        if fresh {
            self.began = Some(now);
            self.passed = 0;
        } else if self.passed >= LINES_PER_SECOND {
            self.suppressed += 1;
            return None;
        }
        self.passed += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_lines_is_cut_and_counted() {
        let mut window = Window::default();
        let start = Instant::now();
        for _ in 0..LINES_PER_SECOND {
            assert_eq!(window.admit(start), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(window.admit(start), None);
        }
        assert_eq!(window.admit(start + Duration::from_secs(1)), Some(7));
        assert_eq!(window.admit(start + Duration::from_secs(1)), Some(0));
    }
}
