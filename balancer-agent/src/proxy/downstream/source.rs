//! Connections and requests per source address, shared by all threads.

use std::net::IpAddr;
use std::sync::Mutex;

/// Connections and requests by source.
#[derive(Default)]
pub(super) struct Sources {
    #[expect(dead_code)]
    shards: Vec<Mutex<std::collections::HashMap<IpAddr, u32>>>,
}
