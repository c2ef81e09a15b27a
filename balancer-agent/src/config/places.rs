//! Where in the file things outside of it are named: certificates, document roots, logs.
//! Whether these can be used is found out by those who use them; what they say gets its
//! line and column here.

use std::collections::{HashMap, HashSet};

use super::error::Finding;
use super::findings::{Span, quote};
use crate::model::{Misfit, Named};

/// The places of all that is named. A thing that is named twice has two.
#[derive(Debug, Default)]
pub(super) struct Places(HashMap<Named, Vec<Span>>);

impl Places {
    /// Notes that a value stands there.
    pub(super) fn add(&mut self, named: Named, span: Span) {
        self.0.entry(named).or_default().push(span);
    }

    /// A finding for each place that names what does not fit. The same misfit may have
    /// been found several times; it is said once for each place.
    pub(super) fn findings(&self, misfits: &[Misfit]) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut said = HashSet::new();
        for misfit in misfits.iter().filter(|misfit| said.insert(*misfit)) {
            let message = format!("{} {}", value(&misfit.named), misfit.what);
            let finding = |span: &Span| Finding {
                span: span.clone(),
                message: message.clone(),
                expected: misfit.expected.clone(),
            };
            match self.0.get(&misfit.named) {
                Some(spans) => findings.extend(spans.iter().map(finding)),
                // A configuration that was not read from this text has no place in it.
                None => findings.push(finding(&(0..0))),
            }
        }
        findings
    }
}

/// Key and value, as messages have them.
fn value(named: &Named) -> String {
    let (key, path) = match named {
        Named::Certificate(files) => ("certificate", &files.certificate),
        Named::Key(files) => ("key", &files.key),
        Named::ClientAuthorities(path) => ("client_authorities", path),
        Named::BackendAuthorities(path) => ("authorities", path),
        Named::Root(path) => ("root", path),
        Named::Log(path) => ("file", path),
        Named::SessionDirectory(path) => ("directory", path),
        Named::BackendTls(pool) => return format!("`tls` of pool {}", quote(pool)),
    };
    format!("`{key}` {}", quote(&path.display().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_told_once() {
        let root = |path: &str| Named::Root(path.into());
        let misfit = |path: &str| Misfit::new(root(path), "is not there", "a directory");
        let mut places = Places::default();
        places.add(root("/a"), 5..9);
        places.add(root("/b"), 20..24);
        places.add(root("/a"), 30..34);
        let found = places.findings(&[misfit("/a"), misfit("/a"), misfit("/c")]);
        let found: Vec<_> = found
            .iter()
            .map(|f| (f.span.clone(), &*f.message))
            .collect();
        let text = "`root` \"/a\" is not there";
        let nowhere = "`root` \"/c\" is not there";
        assert_eq!(found, [(5..9, text), (30..34, text), (0..0, nowhere)]);
    }
}
