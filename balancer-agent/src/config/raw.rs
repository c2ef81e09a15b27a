//! The file as written: serde types that know which tables and keys there are,
//! and where each value stands, but not yet what a value means.
//!
//! Keys hold any [`Value`], so that a wrong type is found together with all the
//! other mistakes and said in the words of that key. serde stops at its first
//! error (an unknown key, something else where a table belongs); [`read`] notes
//! it, takes it out of the document, and tries again.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::findings::{Findings, Span, nearest, quote, shown};
use super::http::raw::{
    RawBackendTimeouts, RawBackendTls, RawClientTimeouts, RawHttp, RawLimits, RawLog, RawObserve,
    RawPing, RawQueue, RawRespond, RawRetries, RawSite, RawSticky, RawTls, Table, Tables,
};

/// Structural mistakes that are looked for before giving up.
const ROUNDS: usize = 50;
/// How toml hands over a date to a type that takes anything.
const DATETIME_KEY: &str = "$__toml_private_datetime";

/// A key's value, when it is there.
pub(super) type Field = Option<Spanned<Value>>;

/// The whole file.
#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawConfig {
    pub(super) xdp: Option<Spanned<Section<RawXdp>>>,
    pub(super) admin: Section<RawAdmin>,
    pub(super) timeouts: Section<RawTimeouts>,
    pub(super) http: Section<RawHttp>,
    pub(super) cluster: Option<Spanned<Section<RawCluster>>>,
    pub(super) session: Option<Spanned<Section<RawSession>>>,
    pub(super) frontend: Vec<Spanned<Section<RawFrontend>>>,
    pub(super) pool: Vec<Spanned<Section<RawPool>>>,
}

/// `[xdp]`.
#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawXdp {
    pub(super) interfaces: Field,
    pub(super) mode: Field,
    pub(super) flows_ipv4: Field,
    pub(super) flows_ipv6: Field,
    pub(super) half_open: Field,
    pub(super) pin_dir: Field,
}

/// `[admin]`.
#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawAdmin {
    pub(super) socket: Field,
}

/// `[cluster]`.
#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawCluster {
    pub(super) name: Field,
    pub(super) listen: Field,
    pub(super) advertise: Field,
    pub(super) seeds: Field,
    pub(super) secret_file: Field,
    pub(super) state_dir: Field,
    pub(super) multicast: Field,
    pub(super) interface: Field,
    pub(super) probe_interval: Field,
    pub(super) probe_timeout: Field,
    pub(super) suspect_timeout: Field,
    pub(super) queue_bytes: Field,
    pub(super) queue_messages: Field,
}

/// `[session]`.
#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawSession {
    pub(super) sessions_max: Field,
    pub(super) bytes_max: Field,
    pub(super) directory: Field,
    pub(super) group: Tables<RawSessionGroup>,
}

/// `[[session.group]]`.
#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawSessionGroup {
    pub(super) name: Field,
    pub(super) manager: Field,
    pub(super) copies: Field,
    pub(super) replication: Field,
    pub(super) sync_timeout: Field,
    pub(super) sync_header: Field,
    pub(super) ttl: Field,
}

/// `[timeouts]`.
#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawTimeouts {
    pub(super) tcp_idle: Field,
    pub(super) udp_idle: Field,
    pub(super) half_open: Field,
    pub(super) closed: Field,
    pub(super) removed: Field,
}

/// `[[frontend]]`, of both modes.
#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawFrontend {
    pub(super) name: Field,
    pub(super) mode: Field,
    pub(super) address: Field,
    pub(super) protocol: Field,
    pub(super) pool: Field,
    pub(super) http1: Field,
    pub(super) http2: Field,
    pub(super) proxy_protocol_from: Field,
    pub(super) trusted_proxies: Field,
    pub(super) x_forwarded: Field,
    pub(super) forwarded: Field,
    pub(super) via: Field,
    pub(super) request_id: Field,
    pub(super) hsts: Field,
    pub(super) redirect_https: Field,
    pub(super) tls: Table<RawTls>,
    pub(super) limits: Table<RawLimits>,
    pub(super) timeouts: Table<RawClientTimeouts>,
    pub(super) log: Table<RawLog>,
    pub(super) site: Tables<RawSite>,
}

/// `[[pool]]`.
#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawPool {
    pub(super) name: Field,
    pub(super) balance: Field,
    pub(super) forward: Field,
    pub(super) snat: Field,
    pub(super) snat_ports: Field,
    pub(super) unavailable: Field,
    pub(super) check: Option<Spanned<Section<RawCheck>>>,
    pub(super) passive: Table<RawPassive>,
    pub(super) sticky: Table<RawSticky>,
    pub(super) queue: Table<RawQueue>,
    pub(super) retries: Table<RawRetries>,
    pub(super) observe: Table<RawObserve>,
    pub(super) panic_threshold: Field,
    pub(super) slow_start: Field,
    pub(super) protocol: Field,
    pub(super) secret: Field,
    pub(super) packet_size: Field,
    pub(super) ping: Table<RawPing>,
    pub(super) tls: Table<RawBackendTls>,
    pub(super) send_proxy: Field,
    pub(super) timeouts: Table<RawBackendTimeouts>,
    pub(super) keep_alive_connections: Field,
    pub(super) maintenance: Table<RawRespond>,
    pub(super) backend: Vec<Spanned<Section<RawBackend>>>,
}

/// `[pool.check]`.
#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawCheck {
    pub(super) r#type: Field,
    pub(super) interval: Field,
    pub(super) fast_interval: Field,
    pub(super) timeout: Field,
    pub(super) fall: Field,
    pub(super) rise: Field,
    pub(super) port: Field,
    pub(super) tls: Field,
    pub(super) path: Field,
    pub(super) host: Field,
    pub(super) expect: Field,
}

/// `[pool.passive]`.
#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawPassive {
    pub(super) refused: Field,
    pub(super) unanswered: Field,
}

/// `[[pool.backend]]`.
#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawBackend {
    pub(super) name: Field,
    pub(super) address: Field,
    pub(super) weight: Field,
    pub(super) activation: Field,
    pub(super) route: Field,
    pub(super) domain: Field,
    pub(super) redirect: Field,
    pub(super) priority: Field,
    pub(super) max_connections: Field,
    pub(super) http_port: Field,
    pub(super) secret: Field,
}

/// A table, and only a table: serde's structs would take an array as well, by
/// the order of their fields.
#[derive(Default)]
pub(super) struct Section<T>(T);

impl<T> Deref for Section<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Section<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(SectionVisitor(PhantomData))
    }
}

struct SectionVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for SectionVisitor<T> {
    type Value = Section<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Section)
    }
}

/// Any TOML value. What no key takes (dates, tables) is only named.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Text(String),
    Integer(i128),
    Float(f64),
    Boolean(bool),
    Datetime,
    Array(Vec<Spanned<Value>>),
    Table,
}

impl fmt::Display for Value {
    /// As it stands in a sentence after "is".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "the string {}", quote(text)),
            Self::Integer(n) => write!(f, "the integer {n}"),
            Self::Float(n) => write!(f, "the number {n:?}"),
            Self::Boolean(b) => write!(f, "the boolean {b}"),
            Self::Datetime => f.write_str("a date or time"),
            Self::Array(_) => f.write_str("an array"),
            Self::Table => f.write_str("a table"),
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::Text(v.to_owned()))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Integer(v.into()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::Integer(v.into()))
    }

    fn visit_i128<E>(self, v: i128) -> Result<Value, E> {
        Ok(Value::Integer(v))
    }

    fn visit_u128<E>(self, v: u128) -> Result<Value, E> {
        // No key's range comes near; which side it is on is all that counts.
        Ok(Value::Integer(i128::try_from(v).unwrap_or(i128::MAX)))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Value::Float(v))
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Boolean(v))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut value = Value::Table;
        while let Some(key) = map.next_key::<String>()? {
            if key == DATETIME_KEY {
                value = Value::Datetime;
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(value)
    }
}

/// Reads the text's structure. `None`: it is so far from what is expected that
/// looking at the values would only give misleading messages; what is wrong is
/// in `findings`.
pub(super) fn read(text: &str, findings: &mut Findings) -> Option<RawConfig> {
    let mut document = match DeTable::parse(text) {
        Ok(document) => document,
        Err(error) => {
            syntax(&error, text, findings);
            return None;
        }
    };
    let mut sound = true;
    for _ in 0..ROUNDS {
        match RawConfig::deserialize(toml::Deserializer::from(document.clone())) {
            Ok(raw) => return sound.then_some(raw),
            Err(error) => sound &= mend(document.get_mut(), &error, findings)?,
        }
    }
    None
}

/// Notes an error of the TOML grammar.
fn syntax(error: &toml::de::Error, text: &str, findings: &mut Findings) {
    let end = text.len();
    let span = error.span().unwrap_or(end..end);
    let message = shown(error.message());
    let unquoted = message.contains("must be quoted");
    if (unquoted || message.starts_with("invalid "))
        && let Some(bare) = bare_value(text, span.start)
    {
        let value = shown(&text[bare.clone()]);
        let expected = format!("quotes around a string, as in \"{value}\"");
        findings.error(
            bare,
            format!("not valid TOML: {value} is not quoted"),
            expected,
        );
        return;
    }
    let (what, expected) = match message.split_once(", expected ") {
        // The parser says the same of a value that is not there at all.
        _ if unquoted => ("a key without a value", "a value after `=`".into()),
        Some((what, expected)) if expected != "nothing" => (what, expected.to_owned()),
        Some((what, _)) => (what, "something else".into()),
        None if message.contains("duplicate key") => {
            ("a key stands twice in one table", "each key once".into())
        }
        None => (message.as_str(), "TOML, such as `key = \"value\"`".into()),
    };
    findings.error(span, format!("not valid TOML: {what}"), expected);
}

/// The value without quotes that `at` is in: the parser takes it for a number,
/// a date or a boolean by how it begins, and complains about what follows.
fn bare_value(text: &str, at: usize) -> Option<Span> {
    let line = text.get(..at)?.rfind('\n').map_or(0, |newline| newline + 1);
    let before = text[line..at].rfind(['=', '[', ','])? + 1;
    let rest = &text[line + before..];
    let start = line + before + (rest.len() - rest.trim_start_matches([' ', '\t']).len());
    let ends = |c: char| c.is_whitespace() || ",]}#".contains(c);
    let value = &text[start..];
    let value = &value[..value.find(ends).unwrap_or(value.len())];
    let quotable = value.starts_with(|c: char| c.is_alphanumeric() || "/.:+-_".contains(c));
    (quotable && !value.contains(['"', '\'', '='])).then(|| start..start + value.len())
}

/// Notes the structural mistake that `error` is about, and takes it out of the
/// document. Gives whether the rest can be understood without it; `None` when
/// its place could not be found.
fn mend(
    document: &mut DeTable<'_>,
    error: &toml::de::Error,
    findings: &mut Findings,
) -> Option<bool> {
    let at = error.span().unwrap_or(0..0);
    let message = error.message();
    let mut sound = None;
    find(document, &at, &mut |table, key| {
        let Some((spanned, value)) = table.remove_entry(key) else {
            return;
        };
        // The place does not tell a key from its value: a table that only a longer
        // header implies (`[pool.check]`) stands where its name does.
        if !message.starts_with("unknown field") {
            findings.error(
                at.clone(),
                misplaced(key, value.get_ref(), message),
                shape(key, message),
            );
            sound = Some(false);
            return;
        }
        let known = known_keys(message, key);
        let near = nearest(key, &known).filter(|near| !table.contains_key(*near));
        let expected = match near {
            Some(near) => format!("`{near}`"),
            None => elsewhere(key).unwrap_or_else(|| one_of(&known)),
        };
        findings.error(
            at.clone(),
            format!("unknown key {}", quote_key(key)),
            expected,
        );
        // The value is then checked as if its key had been spelled right.
        if let Some(near) = near {
            table.insert(Spanned::new(spanned.span(), near.to_owned().into()), value);
        }
        sound = Some(true);
    });
    if sound.is_none() {
        findings.error(
            at,
            shown(message),
            "a file as in docs/configuration.md".to_owned(),
        );
    }
    sound
}

/// Calls `act` with the table and the key of the entry whose key or value (or
/// an element of it) stands at `at`.
fn find(table: &mut DeTable<'_>, at: &Span, act: &mut dyn FnMut(&mut DeTable<'_>, &str)) -> bool {
    let hit = table.iter().find_map(|(key, value)| {
        let element = match value.get_ref() {
            DeValue::Array(items) => items
                .iter()
                .any(|i| i.span() == *at && !matches!(i.get_ref(), DeValue::Table(_))),
            _ => false,
        };
        (key.span() == *at || value.span() == *at || element).then(|| key.get_ref().to_string())
    });
    if let Some(key) = hit {
        act(table, &key);
        return true;
    }
    table
        .iter_mut()
        .any(|(_, value)| find_inside(value.get_mut(), at, act))
}

fn find_inside(
    value: &mut DeValue<'_>,
    at: &Span,
    act: &mut dyn FnMut(&mut DeTable<'_>, &str),
) -> bool {
    match value {
        DeValue::Table(table) => find(table, at, act),
        DeValue::Array(items) => items
            .iter_mut()
            .any(|item| find_inside(item.get_mut(), at, act)),
        _ => false,
    }
}

/// What is wrong with a value whose shape serde did not accept.
fn misplaced(key: &str, value: &DeValue<'_>, message: &str) -> String {
    let key = quote_key(key);
    match value {
        _ if message.contains("overflowed") => format!("{key} holds a number with too many digits"),
        DeValue::Array(_) if message.starts_with("invalid type: sequence") => {
            format!("{key} is an array")
        }
        DeValue::Array(_) => format!("{key} has something else than tables in its array"),
        DeValue::Table(_) => format!("{key} is a single table"),
        DeValue::String(_) => format!("{key} is a string"),
        DeValue::Integer(_) => format!("{key} is an integer"),
        DeValue::Float(_) => format!("{key} is a number"),
        DeValue::Boolean(_) => format!("{key} is a boolean"),
        DeValue::Datetime(_) => format!("{key} is a date or time"),
    }
}

/// What belongs where `key` stands.
fn shape(key: &str, message: &str) -> String {
    let (kind, header) = match key {
        _ if message.contains("overflowed") => {
            return "a number of at most 18 digits".to_owned();
        }
        "request_headers" | "response_headers" => {
            return format!(
                "an array of tables such as `{key} = [{{ set = \"X-Name\", value = \"text\" }}]`"
            );
        }
        "tls" => return "a table, written as `[frontend.tls]` or `[pool.tls]`".to_owned(),
        "timeouts" => {
            return "a table, written as `[timeouts]`, `[frontend.timeouts]` or `[pool.timeouts]`"
                .to_owned();
        }
        "files" | "redirect" | "respond" | "rewrite" => {
            return format!(
                "a table, written as `{key} = {{ .. }}` or `[frontend.site.mount.{key}]`"
            );
        }
        "frontend" | "pool" => ("tables, each", format!("[[{key}]]")),
        "group" => ("tables, each", "[[session.group]]".to_owned()),
        "backend" => ("tables, each", "[[pool.backend]]".to_owned()),
        "site" => ("tables, each", "[[frontend.site]]".to_owned()),
        "mount" | "exclude" => ("tables, each", format!("[[frontend.site.{key}]]")),
        "certificate" => ("tables, each", "[[frontend.tls.certificate]]".to_owned()),
        "fallback" => ("a table,", "[frontend.site.fallback]".to_owned()),
        "limits" | "log" => ("a table,", format!("[frontend.{key}]")),
        "check" | "passive" | "sticky" | "queue" | "retries" | "observe" | "maintenance"
        | "ping" => ("a table,", format!("[pool.{key}]")),
        _ => ("a table,", format!("[{key}]")),
    };
    format!("{kind} written as `{header}`")
}

/// The keys that serde's message about an unknown one lists.
fn known_keys<'a>(message: &'a str, unknown: &str) -> Vec<&'a str> {
    let said = format!("unknown field `{unknown}`");
    let list = message.strip_prefix(said.as_str()).unwrap_or_default();
    list.split('`').skip(1).step_by(2).collect()
}

/// For a key or table that stands in the wrong table: where it belongs.
fn elsewhere(key: &str) -> Option<String> {
    let place = match key {
        "backend" => "[[pool.backend]]",
        "manager" | "copies" | "replication" | "sync_timeout" | "sync_header" | "ttl" => {
            "[[session.group]]"
        }
        "sessions_max" | "bytes_max" | "directory" => "[session]",
        "group" => return Some("it in `[pool.sticky]`, or a `[[session.group]]`".to_owned()),
        "check" | "passive" | "sticky" | "queue" | "retries" | "observe" | "maintenance" => {
            return Some(format!("it in `[pool.{key}]`"));
        }
        "limits" | "log" => return Some(format!("it in `[frontend.{key}]`")),
        "site" => "[[frontend.site]]",
        "mount" | "exclude" => return Some(format!("it in `[[frontend.site.{key}]]`")),
        "fallback" => "[frontend.site.fallback]",
        "hosts" | "root" => "[[frontend.site]]",
        "pattern" | "files" | "respond" | "rewrite" | "compress" => "[[frontend.site.mount]]",
        "strip_prefix" | "add_prefix" | "request_headers" | "response_headers" => {
            return Some("it in the `rewrite` of a mount".to_owned());
        }
        "key_file" | "same_site" | "http_only" | "partitioned" | "parameter" | "force" => {
            "[pool.sticky]"
        }
        "attempts" | "budget_percent" | "non_idempotent" | "on_status" => "[pool.retries]",
        "failures" | "ejection" | "max_ejection" => "[pool.observe]",
        "connect" | "response" | "tunnel" => "[pool.timeouts]",
        "length" => "[pool.queue]",
        "server_name" | "verify" | "authorities" => "[pool.tls]",
        "minimum" | "client_auth" | "client_authorities" => "[frontend.tls]",
        "handshake" | "body_idle" | "body_rate" | "send" => "[frontend.timeouts]",
        "head_bytes"
        | "target_bytes"
        | "body_bytes"
        | "connections"
        | "connections_per_source"
        | "requests_per_source"
        | "requests_per_connection"
        | "h2_streams"
        | "h2_resets" => "[frontend.limits]",
        "file" | "format" | "details" => "[frontend.log]",
        "threads" | "pin_threads" | "learned_max" | "drain_timeout" => "[http]",
        "interval" | "fast_interval" | "timeout" | "fall" | "rise" | "port" | "path" | "host"
        | "expect" => "[pool.check]",
        "refused" | "unanswered" => "[pool.passive]",
        "reuse" => "[pool.ping]",
        "weight" | "activation" | "route" | "domain" | "redirect" | "priority"
        | "max_connections" | "http_port" => "[[pool.backend]]",
        "balance"
        | "forward"
        | "snat"
        | "snat_ports"
        | "unavailable"
        | "panic_threshold"
        | "slow_start"
        | "send_proxy"
        | "secret"
        | "packet_size"
        | "keep_alive_connections" => "[[pool]]",
        "protocol"
        | "http1"
        | "http2"
        | "proxy_protocol_from"
        | "trusted_proxies"
        | "x_forwarded"
        | "forwarded"
        | "via"
        | "request_id"
        | "hsts"
        | "redirect_https" => "[[frontend]]",
        "interfaces" | "flows_ipv4" | "flows_ipv6" | "pin_dir" => "[xdp]",
        "tcp_idle" | "udp_idle" | "closed" | "removed" => "[timeouts]",
        "socket" => "[admin]",
        "listen" | "advertise" | "seeds" | "secret_file" | "state_dir" | "multicast"
        | "interface" | "probe_interval" | "probe_timeout" | "suspect_timeout" | "queue_bytes"
        | "queue_messages" => "[cluster]",
        _ => return None,
    };
    Some(format!("it in `{place}`"))
}

fn one_of(keys: &[&str]) -> String {
    let quoted: Vec<String> = keys.iter().map(|key| format!("`{key}`")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => {
            format!("one of {} or {last}", rest.join(", "))
        }
        _ => quoted.concat(),
    }
}

fn quote_key(key: &str) -> String {
    format!("`{}`", shown(key))
}
