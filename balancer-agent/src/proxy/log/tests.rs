//! Real files: what lands in them, rotation, full disks, and what a record costs.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use http::{Method, Version};
use proptest::prelude::*;

use super::clock::Clock;
use super::writer::BUFFER_MAX;
use super::{AccessLog, LogFiles, Masks, format};
use crate::model::http::{AccessLog as Model, LogFormat};
use crate::proxy::types::{Cause, Record, Timings};

const LONG: Duration = Duration::from_secs(20);

fn record(target: &str) -> Record {
    Record {
        time: UNIX_EPOCH + Duration::from_millis(1_795_642_500_007),
        client: IpAddr::from([192, 0, 2, 7]),
        frontend: "web".into(),
        method: Method::GET,
        target: target.into(),
        version: Version::HTTP_11,
        host: Some("www.example.org".into()),
        referer: None,
        user_agent: Some("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101".into()),
        status: 200,
        bytes_in: 0,
        bytes_out: 1234,
        pool: Some("app".into()),
        backend: Some("s1".into()),
        route: Some("s1".into()),
        retries: 0,
        request_id: None,
        tls: Some("TLSv1.3"),
        timings: Timings {
            queue: None,
            connect: Some(Duration::ZERO),
            response: Some(Duration::from_micros(12_310)),
            total: Duration::from_micros(12_900),
        },
        cause: Cause::Done,
    }
}

fn masks() -> Arc<Masks> {
    Arc::new(Masks::of(["jsessionid"], ["s1", "s2"]))
}

fn model(file: &Path, format: LogFormat) -> Model {
    Model {
        file: file.into(),
        format,
        details: true,
    }
}

fn line(record: &Record, format: LogFormat, details: bool) -> String {
    let (masks, mut clock, mut line) = (masks(), Clock::default(), Vec::new());
    match format {
        LogFormat::Json => format::json(record, &masks, &mut clock, &mut line),
        LogFormat::Combined => {
            format::apache(record, &masks, &mut clock, true, details, &mut line);
        }
        LogFormat::Common => format::apache(record, &masks, &mut clock, false, details, &mut line),
    }
    String::from_utf8(line).unwrap()
}

fn wait(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !is() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Targets of the lines of a file in JSON.
fn targets(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap();
    let target = |line| {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        value["target"].as_str().unwrap().to_owned()
    };
    text.lines().map(target).collect()
}

/// A time's place in the line depends on the host's time zone.
fn untimed(line: &str) -> String {
    let (before, rest) = line.split_once('[').unwrap();
    let (time, after) = rest.split_once(']').unwrap();
    assert_eq!(time.len(), "25/Nov/2026:21:35:00 +0000".len());
    format!("{before}[]{after}")
}

#[test]
fn formats_are_apaches() {
    let mut record = record("/shop;jsessionid=A1B2C3D4E5F60718.s1?x=\"1\"");
    record.referer = Some("http://h/a;jsessionid=A1B2C3D4E5F60718".into());
    record.user_agent = Some("evil\" 200 -\n1.2.3.4".into());
    let common = untimed(&line(&record, LogFormat::Common, false));
    let request = r#"192.0.2.7 - - [] "GET /shop;jsessionid=A1B2***.s1?x=\"1\" HTTP/1.1" 200 1234"#;
    assert_eq!(common, format!("{request}\n"));
    let combined = untimed(&line(&record, LogFormat::Combined, false));
    let headers = r#""http://h/a;jsessionid=A1B2***" "evil\" 200 -\n1.2.3.4""#;
    assert_eq!(combined, format!("{request} {headers}\n"));
    let details = "backend=app/s1 route=s1 retries=0 queue=- connect=0.000 response=12.310 \
                   total=12.900 cause=done";
    let combined = untimed(&line(&record, LogFormat::Combined, true));
    assert_eq!(combined, format!("{request} {headers} {details}\n"));
    let common = untimed(&line(&record, LogFormat::Common, true));
    assert_eq!(common, format!("{request} {details}\n"));
}

#[test]
fn what_is_missing_is_a_dash() {
    let mut record = record("");
    record.method = Method::from_bytes(b"-").unwrap();
    record.status = 0;
    record.bytes_out = 0;
    record.user_agent = None;
    record.route = None;
    record.backend = None;
    record.cause = Cause::ClientTimeout;
    let combined = untimed(&line(&record, LogFormat::Combined, true));
    assert_eq!(
        combined,
        "192.0.2.7 - - [] \"-\" - - \"-\" \"-\" backend=app route=- retries=0 queue=- \
         connect=0.000 response=12.310 total=12.900 cause=client-timeout\n"
    );
}

#[test]
fn json_has_every_field() {
    let mut record = record("/a;jsessionid=A1B2C3D4E5F60718.s2");
    record.version = Version::HTTP_2;
    record.route = Some("SECRET".into());
    let line = line(&record, LogFormat::Json, true);
    let expected = r#"{"time":"2026-11-25T21:35:00.007Z","client":"192.0.2.7","frontend":"web","#
        .to_owned()
        + r#""method":"GET","target":"/a;jsessionid=A1B2***.s2","host":"www.example.org","#
        + r#""version":"HTTP/2.0","status":200,"bytes_in":0,"bytes_out":1234,"referer":null,"#
        + r#""user_agent":"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101","#
        + r#""pool":"app","backend":"s1","route":"***","retries":0,"request_id":null,"#
        + r#""tls":"TLSv1.3","queue_ms":null,"connect_ms":0.000,"response_ms":12.310,"#
        + r#""total_ms":12.900,"cause":"done"}"#;
    assert_eq!(line, expected + "\n");
}

#[test]
fn frontends_share_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let files = LogFiles::new(8);
    let one = files
        .open(&model(&path, LogFormat::Json), &masks())
        .unwrap();
    let roundabout = dir.path().join(".").join("access.log");
    let two = files.open(&model(&roundabout, LogFormat::Json), &masks());
    let two = two.unwrap();
    assert_eq!(files.status().len(), 1);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (one, two) = (one.clone(), two.clone());
            scope.spawn(move || {
                for n in 0..500 {
                    one.write(&record(&format!("/one/{thread}/{n}")));
                    two.write(&record(&format!("/two/{thread}/{n}")));
                }
            });
        }
    });
    assert!(files.flush(LONG));
    let mut seen = targets(&path);
    assert_eq!(seen.len(), 8000);
    // Lines of one thread stay in order while their buffer is its own; all are there once.
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 8000);
    let status = &files.status()[0];
    assert_eq!(status.dropped, 0);
    assert_eq!(status.bytes, fs::metadata(&path).unwrap().len());
    let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode & !0o640, 0, "{mode:o}");
}

#[test]
fn what_was_logged_is_written_when_the_last_frontend_goes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let log = AccessLog::open(&model(&path, LogFormat::Json)).unwrap();
    for n in 0..1000 {
        log.write(&record(&format!("/{n}")));
    }
    drop(log);
    wait("all lines", || targets_so_far(&path) == 1000);
    assert_eq!(targets(&path).len(), 1000);
}

fn targets_so_far(path: &Path) -> usize {
    let text = fs::read_to_string(path).unwrap();
    text.lines().count()
}

#[test]
fn a_line_is_there_soon_without_being_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let log = AccessLog::open(&model(&path, LogFormat::Json)).unwrap();
    for n in 1..=3 {
        log.write(&record("/"));
        wait("a line", || targets_so_far(&path) == n);
        wait("sleep", || log.writer.is_asleep());
    }
}

#[test]
fn a_renamed_file_gets_what_came_before_and_a_new_one_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let (path, old) = (
        dir.path().join("access.log"),
        dir.path().join("access.log.1"),
    );
    let files = LogFiles::new(2);
    let log = files
        .open(&model(&path, LogFormat::Json), &masks())
        .unwrap();
    // Ten rotations, while somebody logs all the time.
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (written, rotated) = std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let mut n = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                log.write(&record(&format!("/{n}")));
                n += 1;
                std::thread::sleep(Duration::from_micros(50));
            }
            n
        });
        let mut rotated = Vec::new();
        for _ in 0..10 {
            let before = files.status()[0].bytes;
            wait("lines", || files.status()[0].bytes > before);
            fs::rename(&path, &old).unwrap();
            let reopened = files.reopen();
            assert_eq!(reopened.len(), 1);
            assert_eq!(reopened[0].error, None);
            rotated.extend(targets(&old));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        (writing.join().unwrap(), rotated)
    });
    assert!(files.flush(LONG));
    let mut all = rotated;
    all.extend(targets(&path));
    // A line that found its buffer just being emptied took another one: it may be a little
    // out of order, but every line is in one of the files, once.
    let mut numbers: Vec<usize> = all.iter().map(|t| t[1..].parse().unwrap()).collect();
    numbers.sort_unstable();
    assert!(
        numbers.iter().copied().eq(0..written),
        "of {written}: {}",
        numbers.len()
    );
}

#[test]
fn logrotate_with_create_and_with_copytruncate() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let files = LogFiles::new(1);
    let log = files
        .open(&model(&path, LogFormat::Json), &masks())
        .unwrap();
    log.write(&record("/1"));
    assert!(files.flush(LONG));
    // create: a new file is there already when the signal comes.
    fs::rename(&path, dir.path().join("1")).unwrap();
    fs::write(&path, "").unwrap();
    log.write(&record("/2"));
    assert!(files.flush(LONG));
    log.reopen();
    assert!(files.flush(LONG));
    log.write(&record("/3"));
    assert!(files.flush(LONG));
    assert_eq!(targets(&dir.path().join("1")), ["/1", "/2"]);
    assert_eq!(targets(&path), ["/3"]);
    // copytruncate: appending goes on at the new end.
    fs::File::create(&path).unwrap();
    log.write(&record("/4"));
    assert!(files.flush(LONG));
    assert_eq!(targets(&path), ["/4"]);
}

#[test]
fn a_file_that_cannot_be_opened_is_named_and_does_not_replace_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("logs");
    let path = logs.join("access.log");
    let files = LogFiles::new(1);
    let open = || files.open(&model(&path, LogFormat::Json), &masks());
    let error = open().unwrap_err().to_string();
    assert!(error.contains(path.to_str().unwrap()), "{error}");
    assert!(error.contains("No such file"), "{error}");

    fs::create_dir(&logs).unwrap();
    let log = open().unwrap();
    let moved = dir.path().join("moved");
    fs::rename(&logs, &moved).unwrap();
    let reopened = files.reopen();
    assert!(reopened[0].error.as_ref().unwrap().contains("No such file"));
    log.write(&record("/still"));
    assert!(files.flush(LONG));
    assert_eq!(targets(&moved.join("access.log")), ["/still"]);
    // A directory is no file either.
    let error = files.open(&model(&moved, LogFormat::Json), &masks());
    assert!(error.unwrap_err().to_string().contains("directory"));
}

#[test]
fn a_full_disk_is_survived() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    symlink("/dev/full", &path).unwrap();
    let files = LogFiles::new(1);
    let log = files
        .open(&model(&path, LogFormat::Json), &masks())
        .unwrap();
    log.write(&record("/1"));
    wait("an error", || files.status()[0].error.is_some());
    let error = files.status()[0].error.clone().unwrap();
    assert!(error.contains("No space"), "{error}");
    assert!(!files.flush(Duration::from_millis(1)));

    let room = dir.path().join("room");
    fs::remove_file(&path).unwrap();
    symlink(&room, &path).unwrap();
    assert_eq!(files.reopen()[0].error, None);
    log.write(&record("/2"));
    assert!(files.flush(LONG));
    assert_eq!(targets(&room), ["/1", "/2"], "what waited is not lost");
    let status = &files.status()[0];
    assert_eq!((status.error.clone(), status.dropped), (None, 0));
}

/// A pipe whose reader pauses: nobody waits, lines beyond the bounds are dropped and
/// counted, and none is broken.
#[test]
fn a_slow_reader_loses_whole_lines_and_stops_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let files = LogFiles::new(1);
    let error = files.open(&model(&path, LogFormat::Json), &masks());
    assert!(
        error.is_err(),
        "a pipe without a reader must not hold up a start"
    );
    let mut reader = fs::OpenOptions::new();
    let reader = reader.read(true).custom_flags(libc::O_NONBLOCK);
    let mut reader = reader.open(&path).unwrap();
    let log = files
        .open(&model(&path, LogFormat::Json), &masks())
        .unwrap();

    let mut given = 0;
    wait("a drop", || {
        for _ in 0..100 {
            log.write(&record(&format!("/{}", "x".repeat(3000))));
            given += 1;
        }
        files.status()[0].dropped > 0
    });
    let status = &files.status()[0];
    assert!(status.waiting <= status.waiting_limit + 8192, "{status:?}");
    assert!(status.waiting_limit <= 3 * BUFFER_MAX as u64);

    let mut text = Vec::new();
    let mut chunk = vec![0; 1 << 16];
    let lines = |text: &[u8]| text.iter().filter(|b| **b == b'\n').count() as u64;
    wait("the rest", || {
        while let Ok(bytes @ 1..) = reader.read(&mut chunk) {
            text.extend_from_slice(&chunk[..bytes]);
        }
        lines(&text) + files.status()[0].dropped == given
    });
    for line in text.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        serde_json::from_slice::<serde_json::Value>(line).unwrap();
    }
    assert_eq!(files.status()[0].error, None, "it recovers");
}

#[test]
fn writers_end_with_their_frontends() {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("access.log");
    let files = LogFiles::new(1);
    let first = files
        .open(&model(&path, LogFormat::Json), &masks())
        .unwrap();
    let second = files
        .open(&model(&path, LogFormat::Common), &masks())
        .unwrap();
    drop(first);
    assert_eq!(files.status().len(), 1);
    drop(second);
    assert!(files.status().is_empty());
    assert!(files.reopen().is_empty());
}

fn text() -> impl Strategy<Value = Box<str>> {
    // Every character, the odd ones often.
    let odd = prop::sample::select(vec![
        "\n",
        "\r",
        "\"",
        "\\",
        "\0",
        "\u{1b}",
        "\u{2028}",
        "\u{85}",
        "\u{7f}",
        "\u{1f600}",
        "%",
        ";jsessionid=",
        "=",
        "%3D",
    ]);
    let piece = prop_oneof![odd.prop_map(str::to_owned), any::<String>()];
    prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat().into())
}

fn any_record() -> impl Strategy<Value = Record> {
    let cause = prop::sample::select(Cause::ALL.to_vec());
    let duration = || prop::option::of(any::<Duration>());
    let head = (
        any::<i64>(),
        any::<IpAddr>(),
        "[!#$%&'*+.^_`|~0-9A-Za-z-]{1,20}",
        text(),
    );
    let fields = (
        prop::option::of(text()),
        prop::option::of(text()),
        prop::option::of(text()),
        prop::option::of(text()),
        prop::option::of(text()),
    );
    let numbers = (any::<u16>(), any::<u64>(), any::<u64>(), any::<u32>());
    let times = (duration(), duration(), duration(), any::<Duration>());
    (head, fields, numbers, times, cause).prop_map(|(head, fields, numbers, times, cause)| {
        let seconds = Duration::from_secs(head.0.unsigned_abs() >> 2);
        Record {
            time: match head.0 < 0 {
                true => UNIX_EPOCH.checked_sub(seconds),
                false => UNIX_EPOCH.checked_add(seconds),
            }
            .unwrap_or(UNIX_EPOCH),
            client: head.1,
            method: Method::from_bytes(head.2.as_bytes()).unwrap(),
            target: head.3,
            host: fields.0,
            referer: fields.1,
            user_agent: fields.2,
            route: fields.3,
            request_id: fields.4,
            status: numbers.0,
            bytes_in: numbers.1,
            bytes_out: numbers.2,
            retries: numbers.3,
            timings: Timings {
                queue: times.0,
                connect: times.1,
                response: times.2,
                total: times.3,
            },
            cause,
            ..record("")
        }
    })
}

proptest! {
    #[test]
    fn any_record_is_one_line(record in any_record()) {
        for format in [LogFormat::Common, LogFormat::Combined, LogFormat::Json] {
            let line = line(&record, format, true);
            prop_assert_eq!(line.find('\n'), Some(line.len() - 1));
            let printable = |b: &u8| (0x20..0x7f).contains(b);
            prop_assert!(line.as_bytes()[..line.len() - 1].iter().all(printable), "{}", line);
        }
    }

    #[test]
    fn json_is_what_it_was(record in any_record()) {
        let line = line(&record, LogFormat::Json, true);
        let value: HashMap<String, serde_json::Value> = serde_json::from_str(&line).unwrap();
        prop_assert_eq!(value.len(), 23);
        let text = |name: &str| value[name].as_str();
        let long = super::escape::FIELD_MAX;
        if record.user_agent.as_ref().is_none_or(|text| text.len() <= long) {
            prop_assert_eq!(text("user_agent"), record.user_agent.as_deref());
        }
        let masked = masks().address(&record.target).into_owned();
        if masked.len() <= long {
            prop_assert_eq!(text("target"), Some(&*masked));
        }
        prop_assert_eq!(text("client"), Some(&*record.client.to_string()));
        prop_assert_eq!(text("method"), Some(record.method.as_str()));
        prop_assert_eq!(text("cause"), Some(record.cause.word()));
        prop_assert_eq!(value["bytes_in"].as_u64(), Some(record.bytes_in));
        prop_assert_eq!(value["bytes_out"].as_u64(), Some(record.bytes_out));
        prop_assert_eq!(value["retries"].as_u64(), Some(u64::from(record.retries)));
        let status = value["status"].as_u64().unwrap_or(0);
        prop_assert_eq!(status, u64::from(record.status));
        prop_assert_eq!(value["queue_ms"].is_null(), record.timings.queue.is_none());
    }

    /// Quotes can't be left: fields are where a reader of the combined format looks.
    #[test]
    fn quoted_fields_stay_quoted(record in any_record()) {
        let line = line(&record, LogFormat::Combined, false);
        let mut quotes = 0;
        let mut escaped = false;
        for byte in line.bytes() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => quotes += 1,
                _ => {}
            }
        }
        prop_assert_eq!(quotes, 6, "{}", line);
    }
}

/// What a record costs the thread that logs it, and what handing it over would cost both.
/// `cargo test --release -p balancer-agent --lib log::tests::timing -- --ignored --nocapture`
#[test]
#[ignore = "measures"]
fn timing() {
    const RECORDS: usize = 100_000;
    const BURST: usize = 100;
    let dir = tempfile::tempdir().unwrap();
    let files = LogFiles::new(1);
    let record = record("/shop/cart;jsessionid=A1B2C3D4E5F60718293A4B5C6D7E8F90.s1?item=4711&n=2");
    for format in [LogFormat::Common, LogFormat::Combined, LogFormat::Json] {
        let path = dir.path().join(format!("{format:?}"));
        let log = files.open(&model(&path, format), &masks()).unwrap();
        let mut spent = Duration::ZERO;
        for _ in 0..RECORDS / BURST {
            let began = Instant::now();
            for _ in 0..BURST {
                log.write(&record);
            }
            spent += began.elapsed();
            // As requests come, and not faster than any disk.
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(files.flush(LONG));
        assert_eq!(log.status().dropped, 0);
        println!(
            "{format:?}: {} ns per record",
            spent.as_nanos() / RECORDS as u128
        );
    }
    // The other way: the record itself through a channel, to be freed over there.
    let (sender, receiver) = std::sync::mpsc::sync_channel::<Record>(1 << 14);
    let freeing = std::thread::spawn(move || {
        let mut spent = Duration::ZERO;
        while let Ok(first) = receiver.recv() {
            let began = Instant::now();
            let more: Vec<Record> = receiver.try_iter().collect();
            drop((first, more));
            spent += began.elapsed();
            std::thread::sleep(Duration::from_millis(1));
        }
        spent
    });
    let mut spent = Duration::ZERO;
    for _ in 0..RECORDS / BURST {
        let records: Vec<Record> = (0..BURST).map(|_| record.clone()).collect();
        let began = Instant::now();
        for record in records {
            let _ = sender.try_send(record);
        }
        spent += began.elapsed();
        std::thread::sleep(Duration::from_millis(2));
    }
    drop(sender);
    let freed = freeing.join().unwrap();
    println!(
        "through a channel, without formatting: {} ns, and {} ns to receive and free",
        spent.as_nanos() / RECORDS as u128,
        freed.as_nanos() / RECORDS as u128
    );
}
