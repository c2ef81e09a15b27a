//! `[cluster]`: who this node is, and how it finds the others.

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;

use super::cross;
use super::findings::{Findings, Mistake, Span};
use super::http::files;
use super::raw::RawCluster;
use super::resolve::{duration_or, name};
use super::value::{self, Role, show_duration};
use crate::model::cluster::{Cluster, Multicast, Secret, Timing};

const LISTEN: &str = "\"10.0.0.1:7946\"";
const SECRET_FILE: &str = "/etc/balancer/cluster.secret";
const STATE_DIR: &str = "/var/lib/balancer";
/// Fewer bytes can be guessed.
const SECRET_MIN: usize = 32;
const SECRET_MAX: usize = 4096;
/// Different bytes in a secret: random ones have more of them by far.
const SECRET_VARIETY: usize = 10;
const SEEDS_MAX: usize = 64;
/// A queue has room for a few of the longest messages.
const QUEUE_BYTES: RangeInclusive<u32> = 4_194_304..=1_073_741_824;
const QUEUE_BYTES_DEFAULT: u32 = 16_777_216;
const QUEUE_MESSAGES: RangeInclusive<u32> = 1_000..=10_000_000;
const QUEUE_MESSAGES_DEFAULT: u32 = 262_144;
const MS: Duration = Duration::from_millis(1);
const MINUTE: Duration = Duration::from_secs(60);

/// Builds the model. `None`: something is wrong and noted.
pub(super) fn cluster(
    raw: &RawCluster,
    span: Span,
    findings: &mut Findings,
) -> Option<Arc<Cluster>> {
    let table = ("the cluster", &span);
    let node = match &raw.name {
        Some(_) => findings
            .optional("name", &raw.name, |v| name(v, "\"node1\""))
            .map(Spanned::into_inner),
        None => host_name(&span, findings),
    };
    let listen = findings.required("listen", &raw.listen, table, LISTEN, |v| {
        value::socket_address(v.text(LISTEN)?, Role::Listener)
    });
    let advertise = findings.optional("advertise", &raw.advertise, |v| {
        value::socket_address(v.text(LISTEN)?, Role::Peer)
    });
    let advertise = reached_at(raw, listen.as_ref(), advertise, findings);
    let seeds = seeds(raw, advertise.as_ref(), findings);
    let example = format!("\"{SECRET_FILE}\"");
    let secret = findings.required("secret_file", &raw.secret_file, table, &example, |v| {
        secret(v.text(&example)?)
    });
    let state_dir = findings.or("state_dir", &raw.state_dir, STATE_DIR.into(), |v| {
        value::path(v.text(&format!("\"{STATE_DIR}\""))?, STATE_DIR)
    });
    let multicast = multicast(raw, listen.as_ref(), findings);
    let timing = timing(raw, findings);
    let queue_bytes = findings.or("queue_bytes", &raw.queue_bytes, QUEUE_BYTES_DEFAULT, |v| {
        v.integer(QUEUE_BYTES)
    });
    let queue_messages = findings.or(
        "queue_messages",
        &raw.queue_messages,
        QUEUE_MESSAGES_DEFAULT,
        |v| v.integer(QUEUE_MESSAGES),
    );
    Some(Arc::new(Cluster {
        name: node?,
        listen: listen?.into_inner(),
        advertise: advertise?.into_inner(),
        seeds,
        secret: secret?.into_inner(),
        state_dir,
        multicast: multicast?,
        timing,
        queue_bytes: queue_bytes as usize,
        queue_messages: queue_messages as usize,
    }))
}

/// The name of this host.
fn host_name(span: &Span, findings: &mut Findings) -> Option<Arc<str>> {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    if value::name(host).is_err() {
        let message = format!(
            "the cluster has no `name`, and the host's name {} can't stand in",
            super::findings::quote(host)
        );
        findings.error(span.clone(), message, "one, such as `name = \"node1\"`");
        return None;
    }
    Some(host.into())
}

/// Where peers reach this node.
fn reached_at(
    raw: &RawCluster,
    listen: Option<&Spanned<SocketAddr>>,
    advertise: Option<Spanned<SocketAddr>>,
    findings: &mut Findings,
) -> Option<Spanned<SocketAddr>> {
    // A wrong one has been noted.
    if raw.advertise.is_some() {
        let advertise = advertise?;
        // `[::]` is listened on for both families.
        if let Some(listen) = listen
            && listen.get_ref().is_ipv4()
            && advertise.get_ref().is_ipv6()
        {
            let message = format!(
                "`advertise` {} is not of the family of `listen` {}",
                advertise.get_ref(),
                listen.get_ref()
            );
            findings.error(advertise.span(), message, "an IPv4 address and port");
            return None;
        }
        return Some(advertise);
    }
    let listen = listen?;
    if listen.get_ref().ip().is_unspecified() {
        let message = format!(
            "`listen` {} is every address, and peers need to be told one",
            listen.get_ref()
        );
        let expected = format!("`advertise = {LISTEN}` as well, with an address of this host");
        findings.error(listen.span(), message, expected);
        return None;
    }
    Some(listen.clone())
}

fn seeds(
    raw: &RawCluster,
    advertise: Option<&Spanned<SocketAddr>>,
    findings: &mut Findings,
) -> Vec<SocketAddr> {
    let example = format!("an array of addresses and ports such as [{LISTEN}]");
    let seeds = findings.list("seeds", &raw.seeds, &example, |v| {
        value::socket_address(v.text(LISTEN)?, Role::Peer)
    });
    cross::unique(&seeds, findings, |seed| {
        (
            format!("seed {seed} is listed twice"),
            "each seed once".into(),
        )
    });
    if let Some(last) = seeds.get(SEEDS_MAX) {
        let message = format!("there are {} seeds", seeds.len());
        let expected = format!("at most {SEEDS_MAX}: a few are enough to find all nodes");
        findings.error(last.span(), message, expected);
    }
    if let Some(advertise) = advertise {
        for seed in &seeds {
            if seed.get_ref().is_ipv4() != advertise.get_ref().is_ipv4() {
                let message = format!(
                    "seed {} is not of the family of this node's address {}",
                    seed.get_ref(),
                    advertise.get_ref()
                );
                let expected = "addresses of one family for all nodes";
                findings.error(seed.span(), message, expected);
            }
        }
    }
    if seeds.is_empty() && raw.seeds.is_none() && raw.multicast.is_none() {
        // A cluster of one that others have as their seed is fine, but rarely meant.
        let span = raw.listen.as_ref().map_or(0..0, Spanned::span);
        let message = "the cluster has neither `seeds` nor `multicast`: this node waits for others";
        findings.warn(
            span,
            message,
            "`seeds`, or nodes that have this one as theirs",
        );
    }
    seeds.into_iter().map(Spanned::into_inner).collect()
}

fn secret(text: &str) -> Result<Secret, Mistake> {
    let path = value::path(text, SECRET_FILE)?;
    let bytes = files::secret(&path, SECRET_MAX)?;
    // Text files end with a newline or don't; copies of the secret are to be the same.
    let bytes = bytes.trim_ascii_end();
    let expected = "a random secret, as from `head -c 48 /dev/urandom | base64 -w0`, \
                    the same on every node";
    if bytes.len() < SECRET_MIN {
        let what = format!(
            "has only {} bytes, and {SECRET_MIN} are needed",
            bytes.len()
        );
        return Err(Mistake::value(what, expected));
    }
    let variety: HashSet<&u8> = bytes.iter().collect();
    if variety.len() < SECRET_VARIETY {
        let what = format!("has only {} different bytes", variety.len());
        return Err(Mistake::value(what, expected));
    }
    Ok(Secret::new(bytes))
}

/// `None`: wrong and noted; `Some(None)`: not asked for.
fn multicast(
    raw: &RawCluster,
    listen: Option<&Spanned<SocketAddr>>,
    findings: &mut Findings,
) -> Option<Option<Multicast>> {
    let interface = findings.optional("interface", &raw.interface, |v| {
        value::interface(v.text("\"eth0\"")?)
    });
    let Some(field) = &raw.multicast else {
        if let Some(interface) = &raw.interface {
            let message = "`interface` is for `multicast`, which is not there";
            let expected = "`multicast = \"239.255.79.46:7947\"`, or no `interface`";
            findings.error(interface.span(), message, expected);
        }
        return Some(None);
    };
    let group = findings.optional("multicast", &raw.multicast, |v| {
        value::multicast_group(v.text("\"239.255.79.46:7947\"")?)
    });
    if raw.interface.is_none() {
        let message = "`multicast` has no `interface`";
        let expected = "the interface to be heard on, such as `interface = \"eth0\"`";
        findings.error(field.span(), message, expected);
    }
    let (group, interface) = (group?, interface?.into_inner());
    if let Some(listen) = listen {
        if listen.get_ref().is_ipv4() != group.get_ref().is_ipv4() {
            let message = format!(
                "`multicast` {} is not of the family of `listen` {}",
                group.get_ref(),
                listen.get_ref()
            );
            let expected = match listen.get_ref().ip() {
                IpAddr::V4(_) => "an IPv4 group such as \"239.255.79.46:7947\"",
                IpAddr::V6(_) => "an IPv6 group such as \"[ff12::79:46]:7947\"",
            };
            findings.error(group.span(), message, expected);
            return None;
        }
        if listen.get_ref().port() == group.get_ref().port() {
            let message = format!(
                "`multicast` has the port {} of `listen`",
                group.get_ref().port()
            );
            findings.error(group.span(), message, "a port of its own");
            return None;
        }
    }
    let group = group.into_inner();
    Some(Some(Multicast { group, interface }))
}

fn timing(raw: &RawCluster, findings: &mut Findings) -> Timing {
    let default = Timing::default();
    let probe_interval = duration_or(
        findings,
        "probe_interval",
        &raw.probe_interval,
        default.probe_interval,
        100 * MS..=MINUTE,
    );
    let probe_timeout = duration_or(
        findings,
        "probe_timeout",
        &raw.probe_timeout,
        // An interval alone may be shorter than the default.
        default.probe_timeout.min(probe_interval * 2 / 5),
        10 * MS..=MINUTE,
    );
    let suspect_timeout = duration_or(
        findings,
        "suspect_timeout",
        &raw.suspect_timeout,
        default.suspect_timeout.max(probe_interval * 4),
        200 * MS..=10 * MINUTE,
    );
    if probe_timeout >= probe_interval {
        let field = raw.probe_timeout.as_ref().or(raw.probe_interval.as_ref());
        let message = format!(
            "`probe_timeout` {} is not shorter than `probe_interval` {}",
            show_duration(probe_timeout),
            show_duration(probe_interval)
        );
        let expected = "time for the answers of others after it";
        findings.error(field.map_or(0..0, Spanned::span), message, expected);
    }
    if suspect_timeout < probe_interval {
        let field = raw.suspect_timeout.as_ref().or(raw.probe_interval.as_ref());
        let message = format!(
            "`suspect_timeout` {} is shorter than `probe_interval` {}",
            show_duration(suspect_timeout),
            show_duration(probe_interval)
        );
        let expected = "time to object: several intervals";
        findings.error(field.map_or(0..0, Spanned::span), message, expected);
    }
    Timing {
        probe_interval,
        probe_timeout,
        suspect_timeout,
    }
}
