//! Next hops: from the kernel's routes to the worker, whatever breaks on the way.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::tell_attached;
use crate::dataplane::kernel::Kernel;
use crate::nexthop::{NextHopError, NextHops, Watcher};
use crate::steering::{Input, SteeringHandle};

/// Pause before netlink is opened again after it broke.
const HOPS_PAUSE: Duration = Duration::from_secs(1);
/// How long the first round waits for the kernel's routes.
const HOPS_PATIENCE: Duration = Duration::from_secs(2);

/// Keeps a watcher of the kernel's routes alive.
pub(super) async fn watch_hops(
    mut destinations: watch::Receiver<Vec<IpAddr>>,
    out: watch::Sender<Arc<NextHops>>,
) {
    loop {
        match watch_hops_once(&mut destinations, &out).await {
            Ok(()) => return,
            Err(error) => tracing::warn!(%error, "next hops can't be watched; trying again"),
        }
        tokio::time::sleep(HOPS_PAUSE).await;
    }
}

/// `Ok` when nobody wants next hops any more.
async fn watch_hops_once(
    destinations: &mut watch::Receiver<Vec<IpAddr>>,
    out: &watch::Sender<Arc<NextHops>>,
) -> Result<(), NextHopError> {
    let (watcher, handle, mut hops) = Watcher::new()?;
    handle.set_destinations(destinations.borrow_and_update().clone());
    let running = watcher.run();
    tokio::pin!(running);
    loop {
        tokio::select! {
            ended = &mut running => return ended,
            changed = hops.changed() => if changed.is_ok() {
                let hops = Arc::clone(&hops.borrow_and_update());
                // A new watcher knows nothing at first; the old knowledge holds.
                if hops.ready && out.send(hops).is_err() {
                    return Ok(());
                }
            },
            changed = destinations.changed() => match changed {
                Ok(()) => handle.set_destinations(destinations.borrow_and_update().clone()),
                Err(_) => return Ok(()),
            },
        }
    }
}

/// The first answer of the kernel, if it comes in time.
pub(super) async fn first_hops(mut hops: watch::Receiver<Arc<NextHops>>) -> Arc<NextHops> {
    let ready = hops.wait_for(|hops| hops.ready);
    match tokio::time::timeout(HOPS_PATIENCE, ready).await {
        Ok(Ok(hops)) => Arc::clone(&hops),
        _ => {
            tracing::warn!("the kernel's routes are not known yet; the first round is without");
            Arc::default()
        }
    }
}

/// Tells the worker of next hops, and attaches again where devices have changed.
pub(super) async fn follow_hops(
    mut hops: watch::Receiver<Arc<NextHops>>,
    kernel: Option<Arc<Kernel>>,
    steering: SteeringHandle,
) {
    let mut links = None;
    loop {
        let now = Arc::clone(&hops.borrow_and_update());
        if now.ready {
            if steering.tell(Input::Hops(Arc::clone(&now))).is_err() {
                return;
            }
            if let Some(kernel) = &kernel
                && links.as_ref() != Some(&now.links)
            {
                links = Some(now.links.clone());
                if refresh(kernel).await && tell_attached(kernel, &steering).is_err() {
                    return;
                }
            }
        }
        if hops.changed().await.is_err() {
            return;
        }
    }
}

async fn refresh(kernel: &Arc<Kernel>) -> bool {
    let kernel = Arc::clone(kernel);
    let refresh = move || {
        let changed = kernel.refresh_interfaces();
        if changed {
            for attached in kernel.attached() {
                tracing::info!(interface = attached.interface, mode = %attached.mode, "attached");
            }
            for failed in kernel.failed() {
                tracing::warn!("not attached to {failed}");
            }
        }
        changed
    };
    tokio::task::spawn_blocking(refresh).await.unwrap_or(false)
}
