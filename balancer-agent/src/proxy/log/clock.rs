//! Times as text. Most of a time's text stays the same for a second, so it is made once
//! per second and buffer.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// 9999-12-31T23:59:59Z: later years have no four digits.
const LAST: u64 = 253_402_300_799;
const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// The second that was formatted last, and its texts.
#[derive(Debug, Default)]
pub(super) struct Clock {
    apache: Second,
    rfc3339: Second,
}

#[derive(Debug, Default)]
struct Second {
    at: Option<u64>,
    text: Vec<u8>,
}

impl Second {
    fn text(&mut self, at: u64, write: fn(u64, &mut Vec<u8>)) -> &mut [u8] {
        if self.at != Some(at) {
            self.text.clear();
            write(at, &mut self.text);
            self.at = Some(at);
        }
        &mut self.text
    }
}

impl Clock {
    /// As Apache writes it, in local time: `25/Nov/2026:21:35:00 +0100`.
    pub fn apache(&mut self, time: SystemTime) -> &[u8] {
        self.apache.text(since_epoch(time).0, |at, text| {
            let t = local(at);
            let sign = if t.offset < 0 { '-' } else { '+' };
            let minutes = t.offset.unsigned_abs() / 60;
            let month = MONTHS[t.month as usize % 12];
            let (h, m) = (minutes / 60, minutes % 60);
            // Writing to memory does not fail.
            let _ = write!(
                text,
                "{:02}/{month}/{:04}:{:02}:{:02}:{:02} {sign}{h:02}{m:02}",
                t.day, t.year, t.hour, t.minute, t.second
            );
        })
    }

    /// RFC 3339 with milliseconds, in UTC: `2026-11-25T20:35:00.123Z`.
    pub fn rfc3339(&mut self, time: SystemTime) -> &str {
        let (at, millisecond) = since_epoch(time);
        let text = self.rfc3339.text(at, |at, text| {
            let t = utc(at);
            let month = t.month + 1;
            let _ = write!(
                text,
                "{:04}-{month:02}-{:02}T{:02}:{:02}:{:02}.000Z",
                t.year, t.day, t.hour, t.minute, t.second
            );
        });
        let place = text.len() - "000Z".len();
        for (byte, unit) in text[place..].iter_mut().zip([100, 10, 1]) {
            *byte = b'0' + (millisecond / unit % 10) as u8;
        }
        // It is ASCII.
        std::str::from_utf8(text).unwrap_or_default()
    }
}

/// Seconds and milliseconds; a clock before 1970 is at its beginning.
fn since_epoch(time: SystemTime) -> (u64, u32) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    (since.as_secs().min(LAST), since.subsec_millis())
}

struct Civil {
    year: i64,
    /// From 0.
    month: u32,
    day: u32,
    hour: u32,
    minute: u32,
    second: u32,
    /// Seconds east of UTC.
    offset: i64,
}

/// By the host's time zone; UTC when it has none that can be used.
fn local(at: u64) -> Civil {
    let time = libc::time_t::try_from(at).unwrap_or_default();
    let mut tm = std::mem::MaybeUninit::<libc::tm>::uninit();
    // SAFETY: both pointers are valid for the call; a result that is not null says that
    // `tm` was filled. It locks against other threads that read the time zone.
    let filled = unsafe { libc::localtime_r(&time, tm.as_mut_ptr()) };
    if filled.is_null() {
        return utc(at);
    }
    // SAFETY: it was filled, see above.
    let tm = unsafe { tm.assume_init() };
    Civil {
        year: i64::from(tm.tm_year) + 1900,
        month: tm.tm_mon.unsigned_abs(),
        day: tm.tm_mday.unsigned_abs(),
        hour: tm.tm_hour.unsigned_abs(),
        minute: tm.tm_min.unsigned_abs(),
        second: tm.tm_sec.unsigned_abs(),
        offset: tm.tm_gmtoff,
    }
}

/// Gregorian calendar from days (Howard Hinnant, "chrono-compatible low-level date
/// algorithms": years begin in March, eras have 400 of them).
fn utc(at: u64) -> Civil {
    let (days, seconds) = (at / 86_400, (at % 86_400) as u32);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = (from_march + 2) % 12;
    let year = year_of_era + era * 400 + u64::from(month < 2);
    Civil {
        year: year as i64,
        month: month as u32,
        day: day as u32,
        hour: seconds / 3600,
        minute: seconds / 60 % 60,
        second: seconds % 60,
        offset: 0,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64, millis: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(seconds * 1000 + millis)
    }

    #[test]
    fn known_times() {
        let mut clock = Clock::default();
        let mut text = |s, ms| clock.rfc3339(at(s, ms)).to_owned();
        assert_eq!(text(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(text(951_782_399, 999), "2000-02-28T23:59:59.999Z");
        assert_eq!(text(951_782_400, 0), "2000-02-29T00:00:00.000Z");
        assert_eq!(text(1_795_642_500, 7), "2026-11-25T21:35:00.007Z");
        assert_eq!(text(LAST, 0), "9999-12-31T23:59:59.000Z");
        assert_eq!(text(LAST + 1, 0), "9999-12-31T23:59:59.000Z");
        let before = UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(clock.rfc3339(before), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn a_kept_second_is_left_when_it_is_over() {
        let mut clock = Clock::default();
        let first = clock.apache(at(1000, 0)).to_vec();
        assert_eq!(clock.apache(at(1000, 999)), first);
        assert_ne!(clock.apache(at(1001, 0)), first);
        assert_eq!(clock.apache(at(1000, 0)), first);
    }

    proptest! {
        /// Against another implementation of the calendar.
        #[test]
        fn utc_is_as_httpdate_has_it(seconds in 0..LAST) {
            let t = utc(seconds);
            let theirs = httpdate::fmt_http_date(at(seconds, 0));
            let ours = format!(
                "{:02} {} {:04} {:02}:{:02}:{:02} GMT",
                t.day, MONTHS[t.month as usize], t.year, t.hour, t.minute, t.second
            );
            prop_assert!(theirs.ends_with(&ours), "{} {}", theirs, ours);
        }

        /// Local time is UTC and its offset.
        #[test]
        fn apache_times_have_one_look(seconds in 0..LAST) {
            let mut clock = Clock::default();
            let text = String::from_utf8(clock.apache(at(seconds, 0)).to_vec()).unwrap();
            let (date, zone) = text.split_once(' ').unwrap();
            prop_assert_eq!(date.len(), "25/Nov/2026:21:35:00".len());
            prop_assert_eq!(zone.len(), 5);
            let number = |range: std::ops::Range<usize>| zone[range].parse::<i64>().unwrap();
            let offset = (number(1..3) * 3600 + number(3..5) * 60)
                * if zone.starts_with('-') { -1 } else { 1 };
            // The offset of old times can have seconds, which the format cuts off.
            prop_assert!((local(seconds).offset - offset).abs() < 60);
        }
    }
}
