//! The power goes: at any moment, with any of the writes since the last confirmation on
//! disk, whole or in part. What was reported safe has to be there; a batch is there whole
//! or not at all.

use std::fs::{self, OpenOptions};
use std::io;
use std::sync::{Arc, Mutex};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use redb::StorageBackend;
use redb::backends::FileBackend;

use super::*;

/// What a disk was told, in order.
#[derive(Clone, Debug)]
enum Told {
    Write(u64, Vec<u8>),
    Length(u64),
    Sync,
}

/// Passes everything on, and remembers it.
#[derive(Debug)]
struct Recorder {
    inner: FileBackend,
    told: Arc<Mutex<Vec<Told>>>,
}

impl Recorder {
    fn note(&self, told: Told) {
        self.told.lock().unwrap().push(told);
    }
}

impl StorageBackend for Recorder {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.note(Told::Length(len));
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()?;
        self.note(Told::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.note(Told::Write(offset, data.to_vec()));
        self.inner.write(offset, data)
    }
}

/// What is written at one time, or not: a disk's sector.
const SECTOR: usize = 512;

fn put(disk: &mut Vec<u8>, at: usize, data: &[u8]) {
    if disk.len() < at + data.len() {
        disk.resize(at + data.len(), 0);
    }
    disk[at..at + data.len()].copy_from_slice(data);
}

/// The disk after a crash at a moment: what was confirmed, and some of the rest.
fn after_crash(before: &[u8], told: &[Told], at: usize, random: &mut StdRng) -> Vec<u8> {
    let synced = told[..at]
        .iter()
        .rposition(|told| matches!(told, Told::Sync));
    let synced = synced.unwrap_or(0);
    let mut disk = before.to_vec();
    let lucky = random.random_range(0..=100);
    for (index, told) in told[..at].iter().enumerate() {
        let sure = index < synced;
        match told {
            Told::Sync => {}
            Told::Length(length) => {
                if sure || random.random_range(0..100) < lucky {
                    disk.resize(*length as usize, 0);
                }
            }
            Told::Write(offset, data) => {
                let whole = sure || random.random_range(0..100) < lucky;
                for (n, sector) in data.chunks(SECTOR).enumerate() {
                    if whole || random.random_range(0..100) < lucky {
                        put(&mut disk, *offset as usize + n * SECTOR, sector);
                    }
                }
            }
        }
    }
    disk
}

#[test]
fn what_was_safe_is_there_and_the_rest_whole_or_not_at_all() {
    let mut random = StdRng::seed_from_u64(7);
    let mut torn = 0;
    for _ in 0..6 {
        let place = Place::new();
        drop(place.open());
        let before = fs::read(&place.path).unwrap();
        let told = Arc::<Mutex<Vec<Told>>>::default();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&place.path)
            .unwrap();
        let recorder = Recorder {
            inner: FileBackend::new(file).unwrap(),
            told: Arc::clone(&told),
        };
        let mut file = Opened::by_way_of(&place.path, IDENTITY, BUCKETS, recorder);
        let mut node = Node::ready();
        // After so many orders to the disk, this was safe.
        let mut safe = vec![(told.lock().unwrap().len(), node.sessions(USER))];
        for _ in 0..25 {
            for _ in 0..random.random_range(1..60) {
                let id = id(random.random_range(0..400));
                match random.random_range(0..4) {
                    0 => node.op(USER, &id, Op::Delete),
                    _ => node.put(&id, &format!("s{}", random.random_range(0..9))),
                };
            }
            while let Some((seq, batch)) = node.next() {
                file.write([&batch[..]].into_iter()).unwrap();
                let mut so_far = Node::empty();
                // The batches of one round say what the store has after them; what each of
                // them makes is what the file has now.
                let (keys, store) = (keys(), &mut so_far.store);
                file.load(&keys, |batch| store.load(batch, Time(0)))
                    .unwrap();
                safe.push((told.lock().unwrap().len(), so_far.sessions(USER)));
                node.written(seq);
            }
        }
        assert_eq!(safe.last().unwrap().1, node.sessions(USER));
        drop(file);
        let told = told.lock().unwrap().clone();
        for _ in 0..60 {
            let at = random.random_range(safe[0].0..=told.len());
            let crashed = Place::new();
            fs::create_dir_all(crashed.path.parent().unwrap()).unwrap();
            let disk = after_crash(&before, &told, at, &mut random);
            fs::write(&crashed.path, disk).unwrap();
            let found = crashed.sessions();
            let done = safe.iter().rposition(|(orders, _)| *orders <= at).unwrap();
            if found == safe[done].1 {
                continue;
            }
            let next = safe.get(done + 1).map(|(_, sessions)| sessions);
            assert_eq!(Some(&found), next, "at order {at}, after batch {done}");
            torn += 1;
        }
    }
    println!("{torn} times the batch that was being written was there");
    assert!(torn > 0, "no crash came late enough to be interesting");
}
