//! The last word on what was made: the configuration's own reader looks at it, and what it
//! refuses is taken out and reported at the line that it came from.

use std::cell::RefCell;
use std::fs::Permissions;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;

use super::draft::{self, Owner, Table, Value};
use super::source::{ImportError, Place};
use super::{Imported, LeftOver, Report};
use crate::config;

/// Rounds of taking out before giving up; each takes out something.
const ROUNDS: usize = 200;

/// Keys that name files which are looked at when a configuration is loaded. They need not
/// be on the machine where it is made.
const FILES: [(&str, &str); 8] = [
    ("certificate", "certificate"),
    ("certificate", "key"),
    ("tls", "certificate"),
    ("tls", "key"),
    ("tls", "authorities"),
    ("tls", "client_authorities"),
    ("sticky", "key_file"),
    ("pool", "secret_file"),
];

/// Prints what the configuration takes.
///
/// # Errors
/// Nothing is left that could be a configuration.
pub fn finish(
    mut root: Table,
    file: &str,
    head: &str,
    mut report: Report,
) -> Result<Imported, ImportError> {
    let key = stand_in_file().map_err(|error| {
        let message = format!("can't be checked: no memory file: {error}");
        ImportError::whole(file, message, "a system with memfd_create")
    })?;
    let key = key.as_raw_fd();
    // Another path for each file: two that are the same are a mistake.
    let known = RefCell::new(Vec::new());
    let stand_in = |table: &str, name: &str, value: &str| {
        if !FILES.contains(&(table, name)) || !value.starts_with('/') {
            return None;
        }
        let mut known = known.borrow_mut();
        let at = known
            .iter()
            .position(|path| path == value)
            .unwrap_or_else(|| {
                known.push(value.to_owned());
                known.len() - 1
            });
        Some(format!("/proc/self/{}fd/{key}", "task/../".repeat(at)))
    };
    for _ in 0..ROUNDS {
        let printed = draft::print(&root, &stand_in);
        if printed.text.trim().is_empty() {
            let message = "has nothing in it that could be carried over";
            let expected = "frontends, backends, virtual hosts or workers";
            return Err(with_reasons(file, message, expected, &report));
        }
        let Err(error) = config::parse("import", &printed.text) else {
            let text = draft::print(&root, &|_, _, _| None).text;
            let toml = format!("{}{text}", header(head));
            report.left_over.sort_by(|a, b| a.place.cmp(&b.place));
            report.notes.sort_by(|a, b| a.place.cmp(&b.place));
            return Ok(Imported {
                toml,
                left_over: report.left_over,
                notes: report.notes,
            });
        };
        let mut removed = false;
        for problem in error.problems() {
            let owner = problem.line.checked_sub(1).and_then(|line| {
                // A problem with the file as a whole has no owner.
                printed.owners.get(line)?.as_ref()
            });
            let Some(owner) = owner else { continue };
            let reason = format!("{}; expected {}", problem.message, problem.expected);
            removed |= take_out(&mut root, owner, &reason, &mut report);
        }
        root.sweep();
        if !removed {
            let message = format!("can't be carried over: {error}");
            let expected = "a configuration that this balancer can have";
            return Err(ImportError::whole(file, message, expected));
        }
    }
    let message = "has too many parts that can't be carried over";
    let expected = "a configuration that this balancer can have";
    Err(with_reasons(file, message, expected, &report))
}

/// The error, with the first reasons why nothing is left.
fn with_reasons(file: &str, message: &str, expected: &str, report: &Report) -> ImportError {
    let mut message = message.to_owned();
    for entry in report.left_over.iter().take(20) {
        message.push_str(&format!("\n  {entry}"));
    }
    if let more @ 1.. = report.left_over.len().saturating_sub(20) {
        message.push_str(&format!("\n  and {more} more"));
    }
    ImportError::whole(file, message, expected)
}

fn header(head: &str) -> String {
    head.lines()
        .map(|line| format!("# {}\n", draft::plain(line)))
        .collect()
}

/// A file that is as keys have to be. Only the checks above see it.
fn stand_in_file() -> std::io::Result<std::fs::File> {
    let name = c"balancer-import";
    let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
    let mut file = std::fs::File::from(nix::sys::memfd::memfd_create(name, flags)?);
    file.write_all(&[b'x'; 64])?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

/// Marks what a problem is about; whether that was news.
fn take_out(root: &mut Table, owner: &Owner, reason: &str, report: &mut Report) -> bool {
    let mut table = root;
    let mut place: Option<Place> = table.place.clone();
    for at in &owner.table {
        let Some(inner) = table.tables_mut().get_mut(*at) else {
            return false;
        };
        table = inner;
        place = table.place.clone().or(place);
    }
    let Some(key) = owner.key else {
        if !std::mem::replace(&mut table.gone, true) {
            let what = what(table);
            say(report, place.as_ref(), what, reason);
            return true;
        }
        return false;
    };
    let name = format!("`{}`", table.keys_mut()[key].name);
    let key = &mut table.keys_mut()[key];
    let place = key.place.clone().or(place);
    if let (Value::Texts(items), Some(at)) = (&mut key.value, owner.item) {
        let item = &mut items[at];
        if std::mem::replace(&mut item.gone, true) {
            return false;
        }
        let place = item.place.clone().or(place);
        let what = item.text.clone();
        let all = items.iter().all(|item| item.gone);
        key.gone |= all;
        say(report, place.as_ref(), what, reason);
        return true;
    }
    if std::mem::replace(&mut key.gone, true) {
        return false;
    }
    let what = match &key.value {
        Value::Text(text) => format!("{name} {text}"),
        Value::Integer(number) => format!("{name} {number}"),
        Value::Texts(items) => match &items[..] {
            [item] => item.text.clone(),
            _ => name,
        },
        _ => name,
    };
    say(report, place.as_ref(), what, reason);
    true
}

fn what(table: &Table) -> String {
    match table.text("name") {
        Some(name) => name.to_owned(),
        None => "this part".to_owned(),
    }
}

fn say(report: &mut Report, place: Option<&Place>, what: String, reason: &str) {
    match place {
        Some(place) => report.left(place, what, reason),
        // Keys of our own belong to a table with a place.
        None => report.left_over.push(LeftOver {
            place: Place {
                file: "import".into(),
                line: 0,
            },
            directive: what,
            reason: reason.to_owned(),
        }),
    }
}
