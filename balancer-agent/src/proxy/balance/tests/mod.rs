//! Tests of choosing and of places.

mod choosing;
mod observing;
mod places;
mod timing;
mod turns;

use std::net::IpAddr;
use std::sync::Arc;

use super::*;
use crate::model::http::PoolHttp;
use crate::proxy::sticky::Affinity;

pub(super) fn client(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

/// Takes a place that has to be free.
pub(super) fn now(view: &Arc<PoolView>, tried: &[usize]) -> Result<Lease, NoBackend> {
    bound(view, &Affinity::default(), tried)
}

/// As [`now`], for a session.
pub(super) fn bound(
    view: &Arc<PoolView>,
    affinity: &Affinity,
    tried: &[usize],
) -> Result<Lease, NoBackend> {
    use futures::FutureExt;
    acquire(view, affinity, client(1), tried)
        .now_or_never()
        .expect("a place is free, or there is none at all")
}

pub(super) fn http() -> PoolHttp {
    PoolHttp::default()
}
