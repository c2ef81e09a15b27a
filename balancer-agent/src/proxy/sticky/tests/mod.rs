//! Tests of stickiness: what is read, who is chosen by it, what is rewritten.

mod others;
mod random;
mod rewriting;
mod routes;
mod shared;

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{COOKIE, HeaderMap, HeaderName, HeaderValue, SET_COOKIE};
use http::response;

use super::*;
use crate::model::http::{PoolHttp, StickyRoute};
use crate::proxy::balance::testing::{Spec, at};
use crate::proxy::balance::{Lease, NoBackend, acquire};

pub(super) fn with(sticky: Sticky) -> PoolHttp {
    PoolHttp {
        sticky: Some(sticky),
        ..PoolHttp::default()
    }
}

pub(super) fn route(force: bool) -> PoolHttp {
    with(Sticky::Route(StickyRoute {
        cookie: "JSESSIONID".into(),
        parameter: "jsessionid".into(),
        force,
    }))
}

/// A request as a browser sends it.
pub(super) fn cookies(fields: &[&str]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for field in fields {
        headers.append(COOKIE, HeaderValue::from_bytes(field.as_bytes()).unwrap());
    }
    headers
}

pub(super) fn texts(headers: &HeaderMap, name: HeaderName) -> Vec<String> {
    let all = headers.get_all(name).into_iter();
    all.map(|f| String::from_utf8(f.as_bytes().to_vec()).unwrap())
        .collect()
}

pub(super) fn head(fields: &[(&str, &str)]) -> response::Parts {
    let mut parts = http::Response::new(()).into_parts().0;
    for (name, value) in fields {
        parts.headers.append(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_bytes(value.as_bytes()).unwrap(),
        );
    }
    parts
}

pub(super) fn client() -> IpAddr {
    IpAddr::from([192, 0, 2, 1])
}

pub(super) fn read_at(view: &PoolView, path: &str, headers: &HeaderMap) -> Affinity {
    let path = NormalPath::parse(path).unwrap();
    read(view, headers, &path, client())
}

pub(super) fn lease(view: &Arc<PoolView>, affinity: &Affinity) -> Result<Lease, NoBackend> {
    use futures::FutureExt;
    acquire(view, affinity, client(), &[])
        .now_or_never()
        .expect("no limits, so no waiting")
}

/// What one exchange did.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Exchange {
    /// Who got it.
    pub backend: String,
    /// `Cookie` that it saw.
    pub cookies: Vec<String>,
    /// Path parameter that it saw in place of the client's.
    pub parameter: Option<String>,
    /// Head that the browser got.
    pub headers: HeaderMap,
}

impl Exchange {
    pub fn set(&self) -> Vec<String> {
        texts(&self.headers, SET_COOKIE)
    }
}

/// A whole request: read, choose, rewrite, answer, rewrite.
pub(super) fn exchange(
    view: &Arc<PoolView>,
    path: &str,
    sent: &[&str],
    answer: &[(&str, &str)],
) -> Exchange {
    let mut headers = cookies(sent);
    let affinity = read_at(view, path, &headers);
    let lease = lease(view, &affinity).unwrap();
    let parameter = rewrite_request(view, &affinity, lease.index(), &mut headers);
    let mut response = head(answer);
    let _ = rewrite_response(view, &affinity, lease.index(), false, &mut response);
    Exchange {
        backend: lease.backend().name.to_string(),
        cookies: texts(&headers, COOKIE),
        parameter,
        headers: response.headers,
    }
}
