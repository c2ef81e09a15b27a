//! Pools for tests, in short.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::PoolView;
use crate::model::http::{BackendHttp, PoolHttp};
use crate::model::{
    Activation, Backend, Balance, Check, CheckKind, Forward, Health, Passive, Pool,
};

/// `s1 s2:drain,w=3 s3:down,p=1,max=2,domain=d,redirect=s1,route=r3`: one backend a word.
/// Their addresses follow from their names.
pub(in crate::proxy) struct Spec<'a>(pub &'a str);

impl Spec<'_> {
    /// The pool, and the state that goes with it.
    pub fn pool(&self, http: PoolHttp) -> (Arc<Pool>, Vec<(String, Health, Activation)>) {
        let mut states = Vec::new();
        let backends = self.0.split_whitespace().map(|word| {
            let (name, rest) = word.split_once(':').unwrap_or((word, ""));
            let mut state = (name.to_owned(), Health::Up, Activation::Active);
            let port = 1000 + super::hash::text(name.as_bytes()) % 60_000;
            let mut backend = Backend {
                name: name.into(),
                address: format!("127.0.0.1:{port}").parse().unwrap(),
                weight: 1,
                activation: Activation::Active,
                http: BackendHttp {
                    route: name.into(),
                    ..BackendHttp::default()
                },
            };
            for part in rest.split(',').filter(|part| !part.is_empty()) {
                let (key, value) = part.split_once('=').unwrap_or((part, ""));
                match key {
                    "down" => state.1 = Health::Down,
                    "drain" => state.2 = Activation::Drain,
                    "stopped" => state.2 = Activation::Stopped,
                    "w" => backend.weight = value.parse().unwrap(),
                    "p" => backend.http.priority = value.parse().unwrap(),
                    "max" => backend.http.max_connections = Some(value.parse().unwrap()),
                    "domain" => backend.http.domain = Some(value.into()),
                    "redirect" => backend.http.redirect = Some(value.into()),
                    "route" => backend.http.route = value.into(),
                    other => panic!("unknown word {other}"),
                }
            }
            states.push(state);
            backend
        });
        let pool = Pool {
            name: "app".into(),
            balance: Balance::RoundRobin,
            forward: Forward::Nat,
            snat: Vec::new(),
            snat_ports: (1024, 65535),
            unavailable: common::tables::Unavailable::Reset,
            check: Check {
                kind: CheckKind::None,
                interval: Duration::from_secs(2),
                fast_interval: Duration::from_secs(1),
                timeout: Duration::from_secs(1),
                fall: 3,
                rise: 2,
                port: None,
                tls: false,
                as_requests: true,
            },
            passive: Passive {
                refused: true,
                unanswered: None,
            },
            backends: backends.collect(),
            http: Arc::new(http),
        };
        (Arc::new(pool), states)
    }

    /// A view of it; what is alive of `previous` goes on.
    pub fn view_after(
        &self,
        http: PoolHttp,
        previous: Option<&PoolView>,
        now: Instant,
    ) -> Arc<PoolView> {
        let (pool, states) = self.pool(http);
        let state = |name: &str| {
            let (_, health, activation) = states.iter().find(|s| s.0 == name).unwrap();
            (*health, *activation)
        };
        Arc::new(PoolView::new(&pool, previous, 10_000, &state, now))
    }

    /// A view of it.
    pub fn view(&self, http: PoolHttp) -> Arc<PoolView> {
        self.view_after(http, None, Instant::now())
    }
}

/// Place of a backend.
pub(in crate::proxy) fn at(view: &PoolView, name: &str) -> usize {
    view.backends
        .iter()
        .position(|b| &*b.name == name)
        .unwrap_or_else(|| panic!("no backend {name}"))
}
