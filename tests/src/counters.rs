//! The kernel's own counters of a namespace, from `/proc/net/snmp` and `netstat`.

use std::collections::BTreeMap;
use std::fs;

use crate::netns::Netns;

/// Counters by group and name, such as `Tcp` and `RetransSegs`.
#[derive(Clone, Debug)]
pub struct Counters(BTreeMap<(String, String), i64>);

impl Counters {
    /// Reads a namespace's counters.
    pub fn of(ns: &Netns) -> Self {
        ns.enter(|| {
            let mut counters = BTreeMap::new();
            // Not `/proc/net`: that is the namespace of the process' first thread.
            for file in ["snmp", "netstat"] {
                let text = fs::read_to_string(format!("/proc/thread-self/net/{file}"))
                    .expect("the kernel's counters");
                collect(&text, &mut counters);
            }
            Self(counters)
        })
    }

    /// One counter; panics when the kernel has none of that name.
    #[track_caller]
    pub fn value(&self, group: &str, name: &str) -> i64 {
        let key = (group.to_owned(), name.to_owned());
        match self.0.get(&key) {
            Some(&value) => value,
            None => panic!("the kernel counts no {group} {name}"),
        }
    }

    /// TCP segments sent again, including SYN.
    pub fn retransmitted(&self) -> i64 {
        self.value("Tcp", "RetransSegs")
    }
}

/// Packets that a namespace's devices have dropped so far, in either direction: full
/// queues, where the machine was too slow for what it was sent.
pub fn dropped(ns: &Netns) -> i64 {
    ns.enter(|| {
        let text =
            fs::read_to_string("/proc/thread-self/net/dev").expect("the counters of devices");
        // Two lines of headings; then by device 8 columns received and 8 sent, the
        // fourth of which counts drops.
        let lines = text.lines().skip(2);
        let columns = lines.filter_map(|line| line.split_once(':'));
        columns
            .flat_map(|(_, columns)| {
                let columns: Vec<i64> = columns
                    .split_whitespace()
                    .filter_map(|column| column.parse().ok())
                    .collect();
                [3, 11].map(|at| columns.get(at).copied().unwrap_or(0))
            })
            .sum()
    })
}

fn collect(text: &str, into: &mut BTreeMap<(String, String), i64>) {
    let lines: Vec<&str> = text.lines().collect();
    for pair in lines.chunks_exact(2) {
        let (Some((group, names)), Some((_, values))) =
            (pair[0].split_once(':'), pair[1].split_once(':'))
        else {
            continue;
        };
        for (name, value) in names.split_whitespace().zip(values.split_whitespace()) {
            if let Ok(value) = value.parse() {
                into.insert((group.to_owned(), name.to_owned()), value);
            }
        }
    }
}
