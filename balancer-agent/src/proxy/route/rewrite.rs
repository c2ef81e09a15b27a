//! Changes of requests and responses on the way, other than of the path
//! ([`NormalPath::target`](super::NormalPath::target) changes that).

use http::header::HOST;
use http::{HeaderMap, request, response};

use crate::model::http::{HeaderChange, Rewrite};

/// Replaces the host and changes headers. The host is left in the `Host` header, also for
/// HTTP/2, where the sender makes `:authority` of it.
pub fn rewrite_request(rewrite: &Rewrite, parts: &mut request::Parts) {
    if let Some(host) = &rewrite.host {
        parts.headers.insert(HOST, host.clone());
    }
    change(&rewrite.request_headers, &mut parts.headers);
}

/// Changes headers.
pub fn rewrite_response(rewrite: &Rewrite, parts: &mut response::Parts) {
    change(&rewrite.response_headers, &mut parts.headers);
}

fn change(changes: &[HeaderChange], headers: &mut HeaderMap) {
    for change in changes {
        match change {
            HeaderChange::Set(name, value) => {
                headers.insert(name, value.clone());
            }
            // A response has room for 32,768 fields; one that is full stays as it is.
            HeaderChange::Add(name, value) => {
                let _ = headers.try_append(name, value.clone());
            }
            HeaderChange::Remove(name) => {
                headers.remove(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue, Request, Response};

    use super::*;

    fn value(text: &'static str) -> HeaderValue {
        HeaderValue::from_static(text)
    }

    #[test]
    fn changes_apply_in_their_order() {
        let tag = HeaderName::from_static("x-tag");
        let rewrite = Rewrite {
            host: Some(value("inside.example")),
            request_headers: vec![
                HeaderChange::Set(tag.clone(), value("one")),
                HeaderChange::Add(tag.clone(), value("two")),
                HeaderChange::Remove(HeaderName::from_static("x-secret")),
            ],
            response_headers: vec![
                HeaderChange::Add(tag.clone(), value("one")),
                HeaderChange::Remove(tag.clone()),
                HeaderChange::Add(tag.clone(), value("three")),
            ],
            ..Rewrite::default()
        };
        let request = Request::builder()
            .header("host", "outside.example")
            .header("x-tag", "from the client")
            .header("x-secret", "1")
            .header("x-secret", "2");
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        rewrite_request(&rewrite, &mut parts);
        assert_eq!(parts.headers["host"], "inside.example");
        assert!(!parts.headers.contains_key("x-secret"));
        let tags: Vec<_> = parts.headers.get_all(&tag).iter().collect();
        assert_eq!(tags, ["one", "two"]);

        let response = Response::builder().header("x-tag", "from the backend");
        let (mut parts, ()) = response.body(()).unwrap().into_parts();
        rewrite_response(&rewrite, &mut parts);
        let tags: Vec<_> = parts.headers.get_all(&tag).iter().collect();
        assert_eq!(tags, ["three"]);
    }

    #[test]
    fn nothing_to_change_changes_nothing() {
        let request = Request::builder().header("host", "outside.example");
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        let before = parts.headers.clone();
        rewrite_request(&Rewrite::default(), &mut parts);
        assert_eq!(parts.headers, before);
    }
}
