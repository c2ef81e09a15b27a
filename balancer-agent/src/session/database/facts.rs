//! What a file says of itself, and whether it is this node's.

use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use redb::{Builder, ReadTransaction, ReadableDatabase as _, TableDefinition, TableError};

use super::super::codec::FORMAT;
use super::super::types::NodeId;
use super::fault::{Fault, fault, guarded, odd};
use super::{Identity, Refusal};

/// Version of the tables and keys. A file of another one is refused.
pub(super) const LAYOUT: u32 = 2;
/// What the file is, and whose.
pub(super) const ABOUT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("about");
/// Memory for pages of a file that is only looked at.
const CACHE: usize = 1 << 20;

/// What a file says of itself.
pub(super) struct Facts {
    layout: u32,
    format: u8,
    buckets: u16,
    node: NodeId,
    check: [u8; 16],
    pub own_keys: Option<([u64; 2], [u64; 2])>,
}

/// Tells keys apart without telling them.
pub(super) fn check_of(identity: &Identity) -> [u8; 16] {
    let keys = identity.key.iter().chain(&identity.id_key);
    let mut text = b"balancer sessions ".to_vec();
    text.extend(keys.flat_map(|word| word.to_le_bytes()));
    let mut check = [0; 16];
    check.copy_from_slice(&digest(&SHA256, &text).as_ref()[..16]);
    check
}

pub(super) fn facts(
    path: &Path,
    read: Result<ReadTransaction, redb::TransactionError>,
) -> Result<Facts, Fault> {
    guarded(|| {
        let read = read.map_err(|error| fault(path, error))?;
        let about = match read.open_table(ABOUT) {
            Ok(about) => about,
            Err(TableError::Storage(error)) => return Err(fault(path, error)),
            Err(_) => return Err(Fault::Refused(foreign(path))),
        };
        fn bytes<const N: usize>(
            about: &impl redb::ReadableTable<&'static str, &'static [u8]>,
            path: &Path,
            key: &str,
        ) -> Result<Option<[u8; N]>, Fault> {
            let found = about.get(key).map_err(|error| fault(path, error))?;
            let value = found.map(|value| value.value().try_into().map_err(|_| odd(key)));
            value.transpose()
        }
        let layout = bytes::<4>(&about, path, "layout")?;
        let layout = layout.ok_or_else(|| Fault::Refused(foreign(path)))?;
        let layout = u32::from_le_bytes(layout);
        if layout != LAYOUT {
            return Err(Fault::Refused(of_another_version(path, layout)));
        }
        let need = |key: &'static str| move || odd(key);
        let format = bytes::<1>(&about, path, "format")?.ok_or_else(need("format"))?;
        let buckets = bytes::<2>(&about, path, "buckets")?.ok_or_else(need("buckets"))?;
        let node = bytes::<8>(&about, path, "node")?.ok_or_else(need("node"))?;
        let keys = bytes::<32>(&about, path, "keys")?;
        let word = |keys: &[u8; 32], at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&keys[at * 8..at * 8 + 8]);
            u64::from_le_bytes(word)
        };
        Ok(Facts {
            layout,
            format: format[0],
            buckets: u16::from_le_bytes(buckets),
            node: NodeId(u64::from_le_bytes(node)),
            check: bytes(&about, path, "check")?.ok_or_else(need("check"))?,
            own_keys: keys.map(|k| ([word(&k, 0), word(&k, 1)], [word(&k, 2), word(&k, 3)])),
        })
    })
}

pub(super) fn not_regular(path: &Path) -> Refusal {
    Refusal::of(path, "is not a regular file", "another `directory`")
}

fn foreign(path: &Path) -> Refusal {
    Refusal::of(
        path,
        "is a database, and not one of balancer's sessions",
        "another `directory`, or the file moved away",
    )
}

fn of_another_version(path: &Path, layout: u32) -> Refusal {
    Refusal::of(
        path,
        format_args!(
            "was written by another version of balancer: its layout is {layout}, this version \
             knows {LAYOUT}"
        ),
        "that version, or the file moved away to start without its sessions",
    )
}

/// Whether a file's sessions are those of this node.
pub(super) fn judge(
    path: &Path,
    facts: &Facts,
    identity: &Identity,
    buckets: u16,
) -> Result<(), Refusal> {
    if facts.layout != LAYOUT {
        return Err(of_another_version(path, facts.layout));
    }
    if facts.format != FORMAT || facts.buckets != buckets {
        return Err(Refusal::of(
            path,
            format_args!(
                "was written by another version of balancer: format {} and {} buckets, this \
                 version has {FORMAT} and {buckets}",
                facts.format, facts.buckets
            ),
            "that version, or the file moved away to start without its sessions",
        ));
    }
    if facts.node != identity.node || facts.own_keys.is_some() != identity.own_keys {
        return Err(Refusal::of(
            path,
            "has the sessions of another node",
            "the file of this node, or it moved away: a node gets from the others what it \
             should have",
        ));
    }
    if facts.own_keys.is_none() && facts.check != check_of(identity) {
        return Err(Refusal::of(
            path,
            "was written with another secret: its sessions can't be found with this one",
            "the cluster's former `secret_file`, or the file moved away to start without its \
             sessions",
        ));
    }
    Ok(())
}

/// Looks at a file without changing it. `Ok(None)`: it can't be said without opening it for
/// writing (it is in use, or was not closed). `Ok(Some(..))`: it is damaged.
pub(super) fn inspect(
    path: &Path,
    identity: &Identity,
    buckets: u16,
) -> Result<Option<String>, Refusal> {
    let looked = guarded(|| {
        let found = path.metadata()?;
        if !found.is_file() {
            return Err(Fault::Refused(not_regular(path)));
        }
        if found.len() == 0 {
            return Err(Fault::Damaged("it is empty".into()));
        }
        let mut builder = Builder::new();
        builder.set_cache_size(CACHE);
        let db = match builder.open_read_only(path) {
            Ok(db) => db,
            Err(
                redb::DatabaseError::DatabaseAlreadyOpen
                | redb::DatabaseError::LockProtocolMismatch
                | redb::DatabaseError::RepairAborted,
            ) => return Ok(()),
            Err(error) => return Err(fault(path, error)),
        };
        let facts = facts(path, db.begin_read())?;
        judge(path, &facts, identity, buckets).map_err(Fault::Refused)
    });
    match looked {
        Ok(()) => Ok(None),
        Err(Fault::Refused(refusal)) => Err(refusal),
        Err(Fault::Damaged(why)) => Ok(Some(why)),
        Err(other) => Err(Refusal::of(
            path,
            format_args!("can't be read: {other}"),
            "a file that the agent may read and write",
        )),
    }
}
