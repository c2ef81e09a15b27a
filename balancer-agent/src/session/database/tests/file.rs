//! The file: what is in it, whose it is, and what is done about damage.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use redb::{Database, TableDefinition};

use super::super::file::open;
use super::super::{Identity, Place as Directory, look};
use super::*;

#[test]
fn what_was_written_is_there_again() {
    let place = Place::new();
    let mut file = place.open();
    let mut node = Node::ready();
    for n in 0..500 {
        node.put(&id(n), "s1");
    }
    node.write(&mut file);
    for n in 0..100 {
        node.put(&id(n), "s2");
    }
    for n in 100..150 {
        node.op(USER, &id(n), Op::Delete);
    }
    node.op(ADMIN, "session-of-an-admin", Op::Touch);
    node.write(&mut file);
    let wanted = node.sessions(USER);
    assert_eq!(wanted.len(), 450);
    assert_eq!(wanted[&id(3)], "s2");
    drop(file);

    let mut file = place.open();
    let mut again = Node::empty();
    assert!(again.load(&mut file));
    assert_eq!(again.sessions(USER), wanted);
    // What has ended is known to have ended, and a new life is later than all of it.
    assert_eq!(again.store.counters().tombstones, 50);
    again.serve();
    let old = node.store.version_of(USER, id(3).as_bytes()).unwrap();
    assert_eq!(again.store.version_of(USER, id(3).as_bytes()), Some(old));
    again.put(&id(3), "s3");
    assert!(again.store.version_of(USER, id(3).as_bytes()).unwrap() > old);
}

#[test]
fn a_bucket_written_whole_replaces_what_was_there() {
    let place = Place::new();
    let mut file = place.open();
    let mut node = Node::ready();
    for n in 0..300 {
        node.put(&id(n), "s1");
    }
    node.write(&mut file);
    // The disk falls behind, so that these come as buckets.
    let mut config = config();
    config.limits.disk_backlog = 200;
    let mut slow = Node {
        store: Store::new(config).unwrap(),
        ..Node::empty()
    };
    assert!(slow.load(&mut file));
    slow.serve();
    for n in 0..300 {
        match n % 3 {
            0 => slow.op(USER, &id(n), Op::Delete),
            _ => slow.put(&id(n), "s2"),
        };
    }
    slow.put("another-session", "s3");
    assert!(slow.store.counters().disk_buckets > 0, "behind");
    slow.write(&mut file);
    assert_eq!(slow.store.counters().disk_buckets, 0);
    drop(file);
    assert_eq!(place.sessions(), slow.sessions(USER));
    assert_eq!(place.sessions().len(), 201);
}

#[test]
fn a_clock_is_never_behind_what_is_gone() {
    let place = Place::new();
    let mut file = place.open();
    let mut node = Node::ready();
    for _ in 0..40 {
        node.put("session-one", "s1");
    }
    let stamp = node.store.version_of(USER, b"session-one").unwrap().stamp;
    node.write(&mut file);
    // It goes without a trace, as a bucket does that others hold now.
    let batch = [
        &[super::super::super::codec::FORMAT, 5][..],
        &keys()[0].to_le_bytes(),
    ]
    .concat();
    for bucket in 0..BUCKETS {
        let batch = [&batch[..], &[bucket as u8, BUCKETS as u8]].concat();
        file.write([&batch[..]].into_iter()).unwrap();
    }
    drop(file);
    assert!(place.sessions().is_empty());
    let mut again = Node::empty();
    assert!(again.load(&mut place.open()));
    again.serve();
    again.put("session-two", "s1");
    let later = again.store.version_of(USER, b"session-two").unwrap().stamp;
    assert!(later > stamp, "{later} after {stamp}");
}

#[test]
fn forgotten_is_forgotten() {
    let place = Place::new();
    let mut file = place.open();
    let mut node = Node::ready();
    for n in 0..50 {
        node.put(&id(n), "s1");
    }
    node.write(&mut file);
    let wipe = [super::super::super::codec::FORMAT, 3];
    file.write([&wipe[..]].into_iter()).unwrap();
    node.put("a-later-session", "s2");
    node.write(&mut file);
    drop(file);
    let left: Vec<String> = place.sessions().into_keys().collect();
    assert_eq!(left, ["a-later-session"]);
}

#[test]
fn only_the_agent_reads_it() {
    let place = Place::new();
    let file = place.open();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&place.path), 0o600);
    assert_eq!(mode(place.path.parent().unwrap()), 0o700);
    assert_eq!(names(place.path.parent().unwrap()), ["sessions.redb"]);
    drop(file);
    fs::set_permissions(&place.path, fs::Permissions::from_mode(0o644)).unwrap();
    drop(place.open());
    assert_eq!(mode(&place.path), 0o600);
}

#[test]
fn rewriting_does_not_make_it_grow() {
    let place = Place::new();
    let mut file = place.open();
    let mut node = Node::ready();
    let mut sizes = Vec::new();
    for round in 0..100 {
        for n in 0..1_000 {
            node.put(&id(n), if round % 2 == 0 { "s1" } else { "s2" });
            if n % 50 == 49 {
                node.write(&mut file);
            }
        }
        sizes.push(file.size());
    }
    // 1,000 sessions are about 100 KB.
    let most = sizes.iter().max().unwrap();
    println!("100,000 writes over 1,000 sessions: at most {most} bytes");
    assert!(*most <= 4 << 20, "{sizes:?}");
    assert_eq!(sizes[50], *most, "it has stopped growing: {sizes:?}");
}

#[test]
fn what_ended_gives_its_room_back() {
    let place = Place::new();
    let mut file = place.open();
    let mut node = Node::ready();
    for n in 0..3_000 {
        let put = Op::Put {
            route: "s1".into(),
            ttl: HOUR,
            data: Some(vec![7; 30_000].into()),
            expect: Expect::Any,
        };
        node.op(USER, &id(n), put);
        if n % 500 == 0 {
            node.write(&mut file);
        }
    }
    node.write(&mut file);
    let full = file.size();
    assert!(full > 64 << 20, "{full}");
    let wipe = [super::super::super::codec::FORMAT, 3];
    file.write([&wipe[..]].into_iter()).unwrap();
    drop(file);
    let mut file = place.open();
    assert!(Node::empty().load(&mut file));
    let small = file.size();
    println!("{full} bytes, then {small}");
    assert!(small < full / 8, "{small} of {full}");
}

#[test]
fn a_file_that_does_not_fit_is_refused_and_stays() {
    let refused = |place: &Place, other: Identity, message: &str, expected: &str| {
        for refusal in [
            open(&place.path, other, BUCKETS).expect_err("a refusal"),
            look(&directory(place), &other, BUCKETS).expect_err("a refusal"),
        ] {
            assert!(refusal.what.contains(message), "{refusal}");
            assert!(refusal.expected.contains(expected), "{refusal}");
            assert!(refusal.what.contains("sessions.redb"), "{refusal}");
        }
        assert_eq!(names(place.path.parent().unwrap()), ["sessions.redb"]);
    };
    let place = Place::new();
    let mut file = place.open();
    let mut node = Node::ready();
    node.put("session-one", "s1");
    node.write(&mut file);

    let busy = place.refusal();
    assert!(busy.what.contains("in use by another process"), "{busy}");
    assert!(busy.expected.contains("a `directory` of its own"), "{busy}");
    // A reload looks while the agent runs.
    assert_eq!(look(&directory(&place), &IDENTITY, BUCKETS), Ok(None));
    drop(file);
    assert_eq!(look(&directory(&place), &IDENTITY, BUCKETS), Ok(None));

    let other = Identity {
        node: NodeId(8),
        ..IDENTITY
    };
    refused(&place, other, "of another node", "it moved away");
    let alone = Identity {
        own_keys: true,
        ..IDENTITY
    };
    refused(&place, alone, "of another node", "it moved away");
    let secret = Identity {
        id_key: [3, 5],
        ..IDENTITY
    };
    refused(&place, secret, "another secret", "former `secret_file`");
    assert_eq!(place.sessions().len(), 1, "none of it did any harm");

    let about = TableDefinition::<&str, &[u8]>::new("about");
    let say = |key: &str, value: &[u8]| {
        let db = Database::open(&place.path).unwrap();
        let write = db.begin_write().unwrap();
        write.open_table(about).unwrap().insert(key, value).unwrap();
        write.commit().unwrap();
    };
    say("format", &[77]);
    refused(&place, IDENTITY, "format 77", "that version");
    say("layout", &9_u32.to_le_bytes());
    refused(
        &place,
        IDENTITY,
        "layout is 9, this version knows 2",
        "that version",
    );

    fs::remove_file(&place.path).unwrap();
    let db = Database::create(&place.path).unwrap();
    let write = db.begin_write().unwrap();
    let table = TableDefinition::<u64, u64>::new("stock");
    write.open_table(table).unwrap().insert(1, 1).unwrap();
    write.commit().unwrap();
    drop(db);
    refused(
        &place,
        IDENTITY,
        "not one of balancer's sessions",
        "another `directory`",
    );

    fs::remove_file(&place.path).unwrap();
    fs::create_dir(&place.path).unwrap();
    assert!(place.refusal().what.contains("Is a directory"));
}

fn directory(place: &Place) -> Directory {
    Directory {
        directory: place.path.parent().unwrap().to_owned(),
        node: None,
    }
}

#[test]
fn a_node_of_its_own_keeps_its_keys() {
    let place = Place::new();
    let own = |first: u64| Identity {
        node: NodeId(1),
        key: [first, 2],
        id_key: [first, 4],
        own_keys: true,
    };
    let file = open(&place.path, own(100), BUCKETS).unwrap();
    assert_eq!(file.identity().id_key, [100, 4]);
    drop(file);
    let file = open(&place.path, own(200), BUCKETS).unwrap();
    assert_eq!(file.identity().key, [100, 2]);
    assert_eq!(file.identity().id_key, [100, 4]);
    let shown = format!("{:?}", file.identity());
    assert!(!shown.contains("100"), "{shown}");
    drop(file);
    let refusal = open(&place.path, IDENTITY, BUCKETS).expect_err("a refusal");
    assert!(refusal.what.contains("another node"), "{refusal}");
}

#[test]
fn groups_that_are_not_persistent_any_more_do_not_come_back() {
    let place = Place::new();
    let mut file = place.open();
    let mut node = Node::ready();
    node.put("session-one", "s1");
    let put = Op::Put {
        route: "s1".into(),
        ttl: HOUR,
        data: None,
        expect: Expect::Any,
    };
    node.op(ADMIN, "session-two", put);
    node.write(&mut file);
    drop(file);
    let mut file = place.open();
    let mut without = Node::empty();
    let store = &mut without.store;
    file.read(&keys()[1..], |batch| store.load(batch, Time(0)))
        .unwrap();
    assert_eq!(without.sessions(USER).len(), 0);
    assert_eq!(without.sessions(ADMIN).len(), 1);
    drop(file);
    assert!(place.sessions().is_empty(), "nor later");
}

/// A file with sessions, closed.
fn written() -> (Place, BTreeMap<String, String>) {
    let place = Place::new();
    let mut file = place.open();
    let mut node = Node::ready();
    for n in 0..2_000 {
        node.put(&id(n), "s1");
        if n % 100 == 0 {
            node.write(&mut file);
        }
    }
    node.write(&mut file);
    (place, node.sessions(USER))
}

/// Starts with what is there: all of it is there, or it was set aside.
fn all_or_aside(place: &Place, wanted: &BTreeMap<String, String>, what: &str) -> bool {
    let damaged = fs::read(&place.path).unwrap();
    let mut file = place.open();
    let mut node = Node::empty();
    let whole = node.load(&mut file);
    if whole && file.aside().is_empty() {
        assert_eq!(node.sessions(USER).len(), wanted.len(), "{what}");
        assert_eq!(node.sessions(USER), *wanted, "{what}");
        return true;
    }
    // What there was is kept, and the node goes on with a new file.
    let [aside] = file.aside() else {
        panic!("{what}: {:?}", file.aside())
    };
    assert_eq!(fs::read(aside).unwrap().len(), damaged.len(), "{what}");
    let mut node = Node::ready();
    node.put("a-new-session", "s1");
    node.write(&mut file);
    drop(file);
    let left: Vec<String> = place.sessions().into_keys().collect();
    assert_eq!(left, ["a-new-session"], "{what}");
    false
}

#[test]
fn damage_is_found_and_set_aside() {
    let (place, wanted) = written();
    let whole = fs::read(&place.path).unwrap();
    let mut random = StdRng::seed_from_u64(1);
    let mut lengths: Vec<usize> = vec![0, 1, 100, 512, 4_096, whole.len() / 2, whole.len() - 1];
    lengths.extend((0..20).map(|_| random.random_range(0..whole.len())));
    for length in lengths {
        let place = Place::new();
        fs::create_dir_all(place.path.parent().unwrap()).unwrap();
        fs::write(&place.path, &whole[..length]).unwrap();
        let directory = directory(&place);
        let odd = look(&directory, &IDENTITY, BUCKETS).unwrap();
        let survived = all_or_aside(&place, &wanted, &format!("{length} of {}", whole.len()));
        if length < 512 {
            assert!(!survived);
            assert!(odd.unwrap().contains("damaged file"));
        }
    }
    let mut kept = 0;
    for round in 0..200 {
        let place = Place::new();
        fs::create_dir_all(place.path.parent().unwrap()).unwrap();
        let mut bytes = whole.clone();
        // The head of the file as often as all the rest.
        let at = match round % 2 {
            0 => random.random_range(0..512),
            _ => random.random_range(0..bytes.len()),
        };
        bytes[at] ^= 1 << random.random_range(0..8);
        fs::write(&place.path, &bytes).unwrap();
        kept += u32::from(all_or_aside(&place, &wanted, &format!("byte {at} changed")));
    }
    println!("{kept} of 200 changes hit nothing that matters");
    for length in [1, 100, 4_096, 70_000] {
        let place = Place::new();
        fs::create_dir_all(place.path.parent().unwrap()).unwrap();
        let garbage = (0..length).map(|_| random.random::<u8>());
        let bytes: Vec<u8> = whole.iter().copied().chain(garbage).collect();
        fs::write(&place.path, &bytes).unwrap();
        all_or_aside(
            &place,
            &wanted,
            &format!("{length} bytes of garbage at the end"),
        );
    }
}

#[test]
fn damaged_files_are_kept_and_not_without_bound() {
    let place = Place::new();
    drop(place.open());
    for n in 1..=8 {
        fs::write(&place.path, format!("not a database {n}")).unwrap();
        drop(place.open());
    }
    let directory = place.path.parent().unwrap();
    assert_eq!(names(directory).len(), 9);
    let kept = directory.join("sessions.redb.damaged-8");
    assert_eq!(fs::read(kept).unwrap(), b"not a database 8");
    fs::write(&place.path, "one too many").unwrap();
    let refusal = place.refusal();
    assert!(refusal.what.contains("8 damaged files"), "{refusal}");
    assert!(refusal.expected.contains("moved away"), "{refusal}");
    assert_eq!(fs::read(&place.path).unwrap(), b"one too many");
}

#[test]
fn a_session_that_cannot_be_read_is_damage() {
    let (place, _) = written();
    let sessions = TableDefinition::<&[u8], &[u8]>::new("sessions");
    let db = Database::open(&place.path).unwrap();
    let write = db.begin_write().unwrap();
    let key = [&keys()[0].to_be_bytes()[..], &[0, 0], b"session-odd"].concat();
    let mut table = write.open_table(sessions).unwrap();
    table.insert(&key[..], &[1, 2, 3][..]).unwrap();
    drop(table);
    write.commit().unwrap();
    drop(db);
    assert!(!all_or_aside(&place, &BTreeMap::new(), "a row"));
}

#[test]
fn a_start_that_was_cut_short_leaves_nothing_in_the_way() {
    let place = Place::new();
    fs::create_dir_all(place.path.parent().unwrap()).unwrap();
    let new = place.path.with_extension("redb.new");
    fs::write(&new, b"redb, begun").unwrap();
    let mut file = place.open();
    assert_eq!(names(place.path.parent().unwrap()), ["sessions.redb"]);
    let mut node = Node::ready();
    node.put("session-one", "s1");
    node.write(&mut file);
    drop(file);
    assert_eq!(place.sessions().len(), 1);
}

#[test]
fn a_directory_that_cannot_be_used_is_said() {
    let place = Place::new();
    let file = place.dir.path().join("a-file");
    fs::write(&file, "").unwrap();
    for (directory, what) in [
        (file.clone(), "can't be used: not a directory"),
        (file.join("below"), "can't be made"),
    ] {
        let directory = Directory {
            directory,
            node: Some("n1".into()),
        };
        let refusal = look(&directory, &IDENTITY, BUCKETS).expect_err("a refusal");
        assert!(refusal.what.contains(what), "{refusal}");
        let refusal = open(&directory.path(), IDENTITY, BUCKETS).expect_err("a refusal");
        assert!(refusal.what.contains("can't be"), "{refusal}");
    }
    let fine = Directory {
        directory: place.dir.path().join("not/there/yet"),
        node: None,
    };
    assert_eq!(look(&fine, &IDENTITY, BUCKETS), Ok(None));
    assert_eq!(
        names(place.dir.path()),
        ["a-file"],
        "it has changed nothing"
    );
}
