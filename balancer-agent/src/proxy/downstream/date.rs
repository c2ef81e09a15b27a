//! `Date` (RFC 9110, 6.6.1), made once a second and thread.

use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

use http::HeaderValue;

use crate::proxy::timer;

/// A date, and until when it need not be looked at.
struct Dated {
    tick: u64,
    second: u64,
    value: Option<HeaderValue>,
}

thread_local! {
    static LAST: RefCell<Dated> = const {
        RefCell::new(Dated { tick: 0, second: 0, value: None })
    };
}

/// The present date. The clock is read once a tick at most.
pub(super) fn now() -> HeaderValue {
    let tick = timer::now();
    LAST.with(|last| {
        let mut last = last.borrow_mut();
        if let Some(value) = last.value.as_ref().filter(|_| last.tick == tick) {
            return value.clone();
        }
        last.tick = tick;
        let time = wall_clock();
        let second = time
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        match &last.value {
            Some(value) if last.second == second => value.clone(),
            _ => {
                last.second = second;
                let text = HeaderValue::try_from(httpdate::fmt_http_date(time));
                let value = text.expect("a date is made of visible characters");
                last.value.insert(value).clone()
            }
        }
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "clients are told the time of day; nothing else depends on it"
)]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_date_of_now() {
        let before = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        for _ in 0..2 {
            let date = httpdate::parse_http_date(now().to_str().unwrap()).unwrap();
            let told = date.duration_since(UNIX_EPOCH).unwrap().as_secs();
            assert!(told.abs_diff(before) <= 1, "{told} {before}");
        }
    }
}
