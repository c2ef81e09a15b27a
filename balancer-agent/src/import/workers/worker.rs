//! Workers made into pools.

use std::cell::RefCell;
use std::collections::HashSet;

use super::attributes::{SHARED, reason};
use super::properties::{Properties, Property};
use crate::import::draft::{self, Table};
use crate::import::names::{self, Names};
use crate::import::source::Place;
use crate::import::{Options, Report};

/// Port of an AJP connector, when none is named.
const AJP_PORT: u16 = 8009;
/// Name of the cookie and path parameter, when none is named.
const COOKIE: &str = "JSESSIONID";

/// What a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A Tomcat.
    Ajp,
    /// Several.
    Balancer,
    /// The view of statistics.
    Status,
    /// None of these.
    Other,
}

/// All workers.
pub struct Workers<'a> {
    /// What they say.
    pub properties: &'a Properties,
    options: &'a Options,
    /// Properties that were asked for.
    used: RefCell<HashSet<String>>,
}

impl<'a> Workers<'a> {
    /// Of these properties.
    pub fn new(properties: &'a Properties, options: &'a Options) -> Self {
        Self {
            properties,
            options,
            used: RefCell::new(HashSet::new()),
        }
    }

    /// An attribute of a worker.
    pub fn get(&self, worker: &str, attribute: &str) -> Option<&'a Property> {
        let name = format!("worker.{worker}.{attribute}");
        let found = self.properties.get(&name);
        self.used.borrow_mut().insert(name);
        found
    }

    fn number(
        &self,
        worker: &str,
        attribute: &str,
        report: &mut Report,
    ) -> Option<(u64, &'a Place)> {
        let property = self.get(worker, attribute)?;
        match property.value.parse::<i64>() {
            Ok(number) => Some((u64::try_from(number).unwrap_or(0), &property.place)),
            Err(_) => {
                let what = format!("worker.{worker}.{attribute}={}", property.value);
                report.left(&property.place, what, "is no whole number");
                None
            }
        }
    }

    fn flag(&self, worker: &str, attribute: &str) -> Option<(bool, &'a Place)> {
        let property = self.get(worker, attribute)?;
        // As `jk_get_bool_code`.
        let on = matches!(
            property.value.chars().next(),
            Some('1' | 'T' | 't' | 'Y' | 'y')
        ) || property.value.eq_ignore_ascii_case("on");
        Some((on, &property.place))
    }

    /// What a worker is; without `type`, an AJP one.
    pub fn kind(&self, worker: &str) -> Kind {
        match self.get(worker, "type").map(|p| p.value.as_str()) {
            None | Some("ajp13" | "ajp14") => Kind::Ajp,
            Some("lb") => Kind::Balancer,
            Some("status") => Kind::Status,
            Some(_) => Kind::Other,
        }
    }

    /// Names of `worker.list`, in order.
    pub fn listed(&self) -> Vec<(String, Place)> {
        let mut names = Vec::new();
        for name in ["worker.list", "workers.list"] {
            if let Some(property) = self.properties.get(name) {
                self.used.borrow_mut().insert(name.to_owned());
                names.extend(list(&property.value).map(|name| (name, property.place.clone())));
            }
        }
        names
    }

    /// The members of a balancer.
    fn members(&self, worker: &str) -> Vec<String> {
        let of = |attribute| {
            self.get(worker, attribute)
                .map(|p| list(&p.value).collect::<Vec<_>>())
        };
        of("balance_workers")
            .or_else(|| of("balanced_workers"))
            .unwrap_or_default()
    }

    /// The first line about a worker.
    pub fn place(&self, worker: &str) -> Option<Place> {
        let prefix = format!("worker.{worker}.");
        let mut places = self
            .properties
            .names()
            .filter(|name| name.starts_with(&prefix));
        places
            .next()
            .and_then(|name| Some(self.properties.get(name)?.place.clone()))
    }

    /// Makes a worker a pool. `named` is where it is asked for.
    pub fn pool(
        &self,
        worker: &str,
        named: &Place,
        names: &mut Names,
        report: &mut Report,
    ) -> Option<Table> {
        let place = self.place(worker).unwrap_or_else(|| named.clone());
        let balancer = self.kind(worker) == Kind::Balancer;
        let members = match balancer {
            true => self.members(worker),
            false => vec![worker.to_owned()],
        };
        let mut pool = Table::one_of("pool", &place);
        let mut backends = Vec::new();
        let mut own = Names::default();
        let mut weights = Vec::new();
        for member in &members {
            if self.kind(member) != Kind::Ajp {
                let place = self.get(member, "type").map_or(&place, |p| &p.place);
                let what = format!("worker.{member}.type");
                report.left(place, what, "a member of a balancer is of type ajp13");
                continue;
            }
            if let Some((table, weight)) = self.member(member, &place, balancer, &mut own, report) {
                backends.push(table);
                weights.push(weight);
            }
        }
        if backends.is_empty() {
            report.left(
                &place,
                format!("worker.{worker}"),
                "it has no member that could be carried over",
            );
            return None;
        }
        pool.set_own("name", names.unique(worker))
            .set_own("protocol", "ajp");
        if balancer {
            self.balancing(&mut pool, worker, report);
        }
        self.connections(&mut pool, &members, report);
        smaller(&mut backends, &weights);
        for backend in backends {
            pool.push(backend);
        }
        Some(pool)
    }

    fn member(
        &self,
        member: &str,
        named: &Place,
        balancer: bool,
        names: &mut Names,
        report: &mut Report,
    ) -> Option<(Table, Option<u64>)> {
        let place = self.place(member).unwrap_or_else(|| named.clone());
        let what = |attribute: &str| format!("worker.{member}.{attribute}");
        let host = self.get(member, "host");
        let mut port = match self.number(member, "port", report) {
            Some((number, place)) => match u16::try_from(number) {
                Ok(port @ 1..) => port,
                _ => {
                    report.left(
                        place,
                        what("port"),
                        "is no port; in mod_jk 0 stops the worker",
                    );
                    return None;
                }
            },
            None => AJP_PORT,
        };
        let name = host.map_or("localhost", |p| p.value.as_str());
        // Newer versions take `host:port`, too.
        let (name, with) = names::split_port(name, false);
        if let Some(with) = with.and_then(|text| text.parse().ok()) {
            port = with;
        }
        let address = match names::server(name, port, self.options) {
            Ok(address) => address,
            Err(reason) => {
                report.left(host.map_or(&place, |p| &p.place), what("host"), reason);
                return None;
            }
        };
        let mut table = Table::one_of("backend", &place);
        table.set_own("name", names.unique(member));
        let at = host.map_or(&place, |p| &p.place);
        table.set("address", address.to_string(), at);
        if let Some(secret) = self.get(member, "secret") {
            table.set("secret", secret.value.as_str(), &secret.place);
        }
        if let Some((limit @ 1.., place)) = self.number(member, "busy_limit", report) {
            table.set("max_connections", limit, place);
        }
        if !balancer {
            return Some((table, None));
        }
        let weight = self.number(member, "lbfactor", report);
        if let Some((weight, place)) = weight {
            table.set("weight", weight, place);
        }
        for (attribute, other) in [
            ("route", "jvm_route"),
            ("domain", "jvm_domain"),
            ("redirect", ""),
        ] {
            let found = self.get(member, attribute).or_else(|| match other {
                "" => None,
                other => self.get(member, other),
            });
            let key = match attribute {
                "route" => "route",
                "domain" => "domain",
                _ => "redirect",
            };
            if let Some(property) = found.filter(|p| !p.value.is_empty()) {
                table.set(key, property.value.as_str(), &property.place);
            }
        }
        if table.get("route").is_none() && table.text("name") != Some(member) {
            // The name had to be changed, what session ids end in has not.
            table.set("route", member, &place);
        }
        if let Some((distance @ 1.., place)) = self.number(member, "distance", report) {
            table.set("priority", distance, place);
        }
        self.activation(&mut table, member, report);
        Some((table, weight.map(|(weight, _)| weight)))
    }

    fn activation(&self, table: &mut Table, member: &str, report: &mut Report) {
        for (attribute, value) in [("disabled", "drain"), ("stopped", "stopped")] {
            if let Some((true, place)) = self.flag(member, attribute) {
                table.set("activation", value, place);
            }
        }
        let Some(property) = self.get(member, "activation") else {
            return;
        };
        let value = match property
            .value
            .chars()
            .next()
            .map(|c| c.to_ascii_lowercase())
        {
            Some('a') => return,
            Some('d') => "drain",
            Some('s') => "stopped",
            _ => {
                let what = format!("worker.{member}.activation={}", property.value);
                report.left(
                    &property.place,
                    what,
                    "is none of active, disabled and stopped",
                );
                return;
            }
        };
        table.set("activation", value, &property.place);
    }

    fn balancing(&self, pool: &mut Table, worker: &str, report: &mut Report) {
        if let Some(method) = self.get(worker, "method") {
            let what = format!("worker.{worker}.method={}", method.value);
            match method.value.chars().next().map(|c| c.to_ascii_uppercase()) {
                Some('R') => _ = pool.set("balance", "round-robin", &method.place),
                Some('B') => _ = pool.set("balance", "least-connections", &method.place),
                Some('S' | 'N') => {
                    pool.set("balance", "round-robin", &method.place);
                    let reason = "round-robin, which is for requests without a session: requests of sessions are not counted";
                    report.note(&method.place, what, reason);
                }
                _ => {
                    let reason = "round-robin instead: traffic is not what requests are spread by";
                    report.left(&method.place, what, reason);
                }
            }
        }
        let sticky = self.flag(worker, "sticky_session");
        let force = self.flag(worker, "sticky_session_force");
        let cookie = self.get(worker, "session_cookie");
        let path = self.get(worker, "session_path");
        match sticky {
            Some((false, place)) => {
                for property in [cookie, path].into_iter().flatten() {
                    report.left(
                        &property.place,
                        "session_cookie, session_path",
                        "sessions are not sticky",
                    );
                }
                let reason = "no `[pool.sticky]`: any backend gets any request";
                report.note(
                    place,
                    format!("worker.{worker}.sticky_session=false"),
                    reason,
                );
            }
            sticky => {
                let table = pool.table("sticky");
                match sticky {
                    Some((_, place)) => _ = table.set("type", "route", place),
                    // The default.
                    None => _ = table.set_own("type", "route"),
                }
                if let Some(cookie) = cookie.filter(|p| p.value != COOKIE) {
                    table.set("cookie", cookie.value.as_str(), &cookie.place);
                }
                if let Some(path) = path {
                    let parameter = path.value.trim_start_matches(';').trim_end_matches('=');
                    if parameter != "jsessionid" {
                        table.set("parameter", parameter, &path.place);
                    }
                }
                if let Some((true, place)) = force {
                    table.set("force", true, place);
                }
            }
        }
        if let Some((time @ 1.., place)) = self.number(worker, "recover_time", report) {
            let observe = pool.table("observe");
            observe.set(
                "ejection",
                draft::duration(time.saturating_mul(1_000)),
                place,
            );
            observe.set(
                "max_ejection",
                draft::duration(time.saturating_mul(1_000)),
                place,
            );
        }
        for attribute in ["retries", "lb_retries"] {
            if let Some((number, place)) = self.number(worker, attribute, report) {
                // The first attempt is one of mod_jk's.
                pool.table("retries")
                    .set("attempts", number.saturating_sub(1), place);
            }
        }
    }

    /// What is said of connections: for each member there, for all of them here.
    fn connections(&self, pool: &mut Table, members: &[String], report: &mut Report) {
        let Some((first, others)) = members.split_first() else {
            return;
        };
        for attribute in SHARED {
            let value = self.get(first, attribute).map(|p| p.value.as_str());
            for other in others {
                let differs = self
                    .get(other, attribute)
                    .filter(|p| value != Some(p.value.as_str()));
                if let Some(property) = differs {
                    let reason = format!(
                        "it is the same for all backends of a pool: that of {first} is taken"
                    );
                    report.left(
                        &property.place,
                        format!("worker.{other}.{attribute}={}", property.value),
                        reason,
                    );
                }
            }
        }
        let mut number = |attribute: &str| {
            self.number(first, attribute, report)
                .filter(|(n, _)| *n > 0)
        };
        let seconds = |(n, place): (u64, &'a Place)| (n.saturating_mul(1_000), place);
        let connect = number("socket_connect_timeout");
        let reply = number("reply_timeout").or_else(|| number("socket_timeout").map(seconds));
        let idle = number("connection_pool_timeout")
            .or_else(|| number("cache_timeout"))
            .map(seconds);
        let size = number("connection_pool_size").or_else(|| number("cachesize"));
        let packet = number("max_packet_size");
        let ping = number("ping_timeout");
        let connect_ping = number("connect_timeout");
        let prepost = number("prepost_timeout");
        if let Some((size, place)) = size {
            pool.set("keep_alive_connections", size, place);
        }
        if let Some((bytes, place)) = packet {
            pool.set("packet_size", bytes.max(8_192), place);
        }
        let times = [
            (connect, "connect"),
            (reply, "response"),
            (reply, "idle"),
            (idle, "keep_alive"),
        ];
        for (time, key) in times {
            if let Some((time, place)) = time {
                pool.table("timeouts")
                    .set(key, draft::duration(time), place);
            }
        }
        self.ping(pool, first, (ping, connect_ping, prepost), report);
    }

    #[allow(clippy::type_complexity)]
    fn ping(
        &self,
        pool: &mut Table,
        member: &str,
        (ping, connect, prepost): (
            Option<(u64, &Place)>,
            Option<(u64, &Place)>,
            Option<(u64, &Place)>,
        ),
        report: &mut Report,
    ) {
        let mode = self.get(member, "ping_mode");
        let has = |letter: char| {
            mode.is_some_and(|m| m.value.to_ascii_uppercase().contains([letter, 'A']))
        };
        let interval = self.number(member, "connection_ping_interval", report);
        if mode.is_some() || connect.is_some() || prepost.is_some() {
            let table = pool.table("ping");
            let place = mode
                .map(|m| &m.place)
                .or(connect.map(|c| c.1))
                .or(prepost.map(|p| p.1));
            if let Some(place) = place {
                table.set("connect", has('C') || connect.is_some(), place);
                let each = has('P') || prepost.is_some();
                match (each, has('I'), interval) {
                    (true, ..) => _ = table.set("reuse", true, place),
                    (false, true, interval) => {
                        // mod_jk's default is 100 s.
                        let (time, place) = interval.unwrap_or((100, place));
                        table.set(
                            "reuse",
                            draft::duration(time.max(1).saturating_mul(1_000)),
                            place,
                        );
                    }
                    (false, false, _) => _ = table.set("reuse", false, place),
                }
            }
        }
        // mod_jk has a time for each; here there is one, the longest of them.
        let longest = [ping, connect, prepost]
            .into_iter()
            .flatten()
            .max_by_key(|(time, _)| *time);
        if let Some((time, place)) = longest {
            pool.table("ping")
                .set("timeout", draft::duration(time), place);
        }
    }

    /// Reports what nothing was made of.
    pub fn left_over(&self, report: &mut Report) {
        let used = self.used.borrow().clone();
        let templates: HashSet<String> = self
            .properties
            .names()
            .filter(|name| name.ends_with(".reference"))
            .filter_map(|name| Some(format!("{}.", self.properties.get(name)?.value)))
            .collect();
        let mut seen = HashSet::new();
        for name in self.properties.names() {
            let Some(property) = self.properties.get(name) else {
                continue;
            };
            if used.contains(name) {
                continue;
            }
            let attribute = name.rsplit('.').next().unwrap_or(name);
            let what = match attribute {
                // Secrets are nobody's business.
                "secret" | "secretkey" => name.to_owned(),
                _ => format!("{name}={}", property.value),
            };
            let dots = name.bytes().filter(|b| *b == b'.').count();
            if !name.starts_with("worker.") && !name.starts_with("workers.") {
                // A property that others may refer to; mod_jk does not look at it either.
                continue;
            }
            if attribute == "reference" && dots == 2 {
                continue;
            }
            // A template is looked at where it is used; what it says is said once.
            let of_template = name.len() > attribute.len()
                && templates.contains(&name[..name.len() - attribute.len()]);
            if (of_template && reason(attribute).is_none())
                || !seen.insert((property.place.clone(), attribute))
            {
                continue;
            }
            let worker = name.split('.').nth(1).unwrap_or_default();
            let known = self.get_quietly(worker);
            match (known, reason(attribute)) {
                (_, Some(reason)) => report.left(&property.place, what, reason),
                (false, _) => report.left(&property.place, what, "this worker is neither in worker.list nor a member, nor is anything mounted to it"),
                (true, None) => report.left(&property.place, what, "there is nothing like it"),
            }
        }
    }

    /// Whether anything of a worker was looked at.
    fn get_quietly(&self, worker: &str) -> bool {
        self.used
            .borrow()
            .contains(&format!("worker.{worker}.type"))
    }
}

/// Weights are at most 256: larger ones are divided by what they have in common.
fn smaller(backends: &mut [Table], weights: &[Option<u64>]) {
    if weights.iter().flatten().all(|weight| *weight <= 256) {
        return;
    }
    // Members without one have 1.
    let common = weights.iter().fold(0, |a, b| gcd(a, b.unwrap_or(1)));
    for (backend, weight) in backends.iter_mut().zip(weights) {
        if let (Some(weight), Some(place)) = (weight, backend.place.clone())
            && common > 1
        {
            backend.set("weight", weight / common, &place);
        }
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn list(text: &str) -> impl Iterator<Item = String> {
    let words = text.split([' ', '\t', ',', '*']);
    words.filter(|word| !word.is_empty()).map(str::to_owned)
}
