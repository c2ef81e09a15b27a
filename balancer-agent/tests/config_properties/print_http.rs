//! A web tier as a part of a file.

use std::fmt::{Display, Write as _};
use std::path::Path;
use std::time::Duration;

use ::http::HeaderValue;
use balancer_agent::model::Backend;
use balancer_agent::model::http::*;
use ipnet::IpNet;

use super::files;
use super::print::{ms, quote};

/// Keys of a table. Unless `explicit`, those with a default value are left out.
struct Keys {
    lines: Vec<String>,
    explicit: bool,
}

impl Keys {
    fn new(explicit: bool) -> Self {
        Self {
            lines: Vec::new(),
            explicit,
        }
    }

    fn key<T: PartialEq>(
        &mut self,
        name: &str,
        value: &T,
        default: &T,
        show: impl Fn(&T) -> String,
    ) {
        if self.explicit || value != default {
            self.lines.push(format!("{name} = {}", show(value)));
        }
    }

    fn plain<T: PartialEq + Display>(&mut self, name: &str, value: T, default: T) {
        self.key(name, &value, &default, T::to_string);
    }

    fn time(&mut self, name: &str, value: Duration, default: Duration) {
        self.key(name, &value, &default, |time| ms(*time));
    }

    /// A key that `false` switches off.
    fn off<T: PartialEq + Display>(&mut self, name: &str, value: Option<T>, default: Option<T>) {
        self.key(name, &value, &default, |value| match value {
            Some(value) => value.to_string(),
            None => "false".to_owned(),
        });
    }

    /// A key that is there or not.
    fn some(&mut self, name: &str, value: Option<String>) {
        if let Some(value) = value {
            self.lines.push(format!("{name} = {value}"));
        }
    }

    fn inline(&self) -> String {
        format!("{{ {} }}", self.lines.join(", "))
    }

    /// Nothing is printed for a table without keys, unless it `has_to` be there.
    fn table(&self, out: &mut String, header: &str, has_to: bool) {
        if has_to || !self.lines.is_empty() {
            writeln!(out, "{header}\n{}", self.lines.join("\n")).unwrap();
        }
    }
}

fn header(value: &HeaderValue) -> String {
    quote(value.to_str().unwrap())
}

fn path(path: &Path) -> String {
    quote(path.to_str().unwrap())
}

fn list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}

pub fn http(out: &mut String, http: &Http, explicit: bool) {
    let d = Http::default();
    let mut keys = Keys::new(explicit);
    keys.plain("threads", http.threads, d.threads);
    keys.plain("pin_threads", http.pin_threads, d.pin_threads);
    keys.plain("learned_max", http.learned_max, d.learned_max);
    keys.plain("max_connections", http.max_connections, d.max_connections);
    keys.time("drain_timeout", http.drain_timeout, d.drain_timeout);
    keys.table(out, "[http]", false);
    for f in &http.frontends {
        frontend(out, f, explicit);
    }
}

fn frontend(out: &mut String, f: &HttpFrontend, explicit: bool) {
    let mut keys = Keys::new(explicit);
    keys.some("name", Some(quote(&f.name)));
    keys.some("mode", Some("\"http\"".into()));
    keys.some("address", Some(quote(&f.address.to_string())));
    let (versions, forwarded) = (Versions::default(), Forwarded::default());
    keys.plain("http1", f.versions.http1, versions.http1);
    keys.plain("http2", f.versions.http2, versions.http2);
    let networks = |nets: &[ipnet::IpNet]| {
        let short = |net: &ipnet::IpNet| match net.prefix_len() == net.max_prefix_len() {
            true if !explicit => quote(&net.addr().to_string()),
            _ => quote(&net.to_string()),
        };
        (!nets.is_empty()).then(|| list(nets.iter().map(short)))
    };
    keys.some("proxy_protocol_from", networks(&f.proxy_protocol_from));
    keys.some("trusted_proxies", networks(&f.trusted_proxies));
    keys.plain(
        "x_forwarded",
        f.forwarded.x_forwarded,
        forwarded.x_forwarded,
    );
    keys.plain("forwarded", f.forwarded.rfc7239, forwarded.rfc7239);
    keys.some("via", f.via.as_deref().map(quote));
    keys.some(
        "request_id",
        f.request_id.as_ref().map(|name| quote(name.as_str())),
    );
    keys.some("hsts", f.hsts.as_ref().map(header));
    keys.some(
        "redirect_https",
        f.redirect_https.map(|port| port.to_string()),
    );
    // The last site can be the frontend's own pool.
    let (sites, pool) = match f.sites.split_last() {
        Some((last, sites)) if !explicit && last.hosts.is_empty() => match only_pool(last) {
            Some(pool) => (sites, Some(pool)),
            None => (&f.sites[..], None),
        },
        _ => (&f.sites[..], None),
    };
    keys.some("pool", pool.map(quote));
    keys.table(out, "[[frontend]]", true);
    if let Some(t) = &f.tls {
        tls(out, t, explicit);
    }
    limits(out, &f.limits, explicit);
    timeouts(out, &f.timeouts, explicit);
    if let Some(log) = &f.log {
        let mut keys = Keys::new(explicit);
        keys.some("file", Some(path(&log.file)));
        keys.key("format", &log.format, &LogFormat::default(), |format| {
            quote(&format!("{format:?}").to_lowercase())
        });
        keys.plain("details", log.details, true);
        keys.table(out, "[frontend.log]", true);
    }
    for s in sites {
        site(out, s, explicit);
    }
}

/// The pool of a site with nothing but that in it.
fn only_pool(site: &Site) -> Option<&str> {
    match &site.mounts[..] {
        [mount]
            if &*mount.pattern == "/*" && site.exclusions.is_empty() && site.fallback.is_none() =>
        {
            plain_pool(&mount.route)
        }
        _ => None,
    }
}

fn plain_pool(route: &Route) -> Option<&str> {
    match &route.action {
        Action::Pool(pool) if route.rewrite == Rewrite::default() && route.compress.is_none() => {
            Some(pool)
        }
        _ => None,
    }
}

fn pair(keys: &mut Keys, pair: &CertificateFiles) {
    keys.some("certificate", Some(path(&pair.certificate)));
    keys.some("key", Some(path(&pair.key)));
}

fn tls(out: &mut String, tls: &Tls, explicit: bool) {
    let mut keys = Keys::new(explicit);
    keys.key(
        "minimum",
        &tls.minimum,
        &TlsVersion::default(),
        |v| match v {
            TlsVersion::V1_2 => "\"1.2\"".to_owned(),
            TlsVersion::V1_3 => "\"1.3\"".to_owned(),
        },
    );
    let (word, authorities) = match &tls.client_auth {
        ClientAuth::Off => ("off", None),
        ClientAuth::Optional(path) => ("optional", Some(path)),
        ClientAuth::Required(path) => ("required", Some(path)),
    };
    keys.key("client_auth", &word, &"off", |word| quote(word));
    keys.some("client_authorities", authorities.map(|p| path(p)));
    keys.table(out, "[frontend.tls]", true);
    for certificate in &tls.certificates {
        let mut keys = Keys::new(explicit);
        pair(&mut keys, certificate);
        keys.table(out, "[[frontend.tls.certificate]]", true);
    }
}

fn limits(out: &mut String, l: &Limits, explicit: bool) {
    let d = Limits::default();
    let mut keys = Keys::new(explicit);
    keys.plain("headers", l.headers, d.headers);
    keys.plain("head_bytes", l.head_bytes, d.head_bytes);
    keys.plain(
        "target_bytes",
        l.target_bytes,
        d.target_bytes.min(l.head_bytes),
    );
    keys.off("body_bytes", l.body_bytes, d.body_bytes);
    keys.plain("connections", l.connections, d.connections);
    keys.off(
        "connections_per_source",
        l.connections_per_source,
        d.connections_per_source,
    );
    keys.off(
        "requests_per_source",
        l.requests_per_source,
        d.requests_per_source,
    );
    keys.off(
        "requests_per_connection",
        l.requests_per_connection,
        d.requests_per_connection,
    );
    keys.plain("h2_streams", l.h2_streams, d.h2_streams);
    keys.plain("h2_resets", l.h2_resets, d.h2_resets);
    keys.table(out, "[frontend.limits]", false);
}

fn timeouts(out: &mut String, t: &ClientTimeouts, explicit: bool) {
    let d = ClientTimeouts::default();
    let mut keys = Keys::new(explicit);
    keys.time("handshake", t.handshake, d.handshake);
    keys.time("headers", t.headers, d.headers);
    keys.time("keep_alive", t.keep_alive, d.keep_alive);
    keys.time("body_idle", t.body_idle, d.body_idle);
    keys.off("body_rate", t.body_rate, d.body_rate);
    keys.time("send", t.send, d.send);
    keys.table(out, "[frontend.timeouts]", false);
}

fn site(out: &mut String, site: &Site, explicit: bool) {
    let mut keys = Keys::new(explicit);
    let hosts = site.hosts.iter().map(|host| match host {
        HostPattern::Exact(name) => quote(name),
        HostPattern::Suffix(suffix) => quote(&format!("*{suffix}").to_uppercase()),
    });
    keys.some("hosts", (!site.hosts.is_empty()).then(|| list(hosts)));
    // Short forms: a last mount of everything, a document root.
    let (mounts, pool) = match site.mounts.split_last() {
        Some((last, mounts)) if !explicit && &*last.pattern == "/*" => {
            match plain_pool(&last.route) {
                Some(pool) => (mounts, Some(pool)),
                None => (&site.mounts[..], None),
            }
        }
        _ => (&site.mounts[..], None),
    };
    let root = site
        .fallback
        .as_ref()
        .and_then(|route| match &route.action {
            Action::Files(files) if !explicit && **route == root_only(files) => {
                Some(path(&files.root))
            }
            _ => None,
        });
    let fallback = site.fallback.as_ref().filter(|_| root.is_none());
    keys.some("pool", pool.map(quote));
    keys.some("root", root);
    keys.table(out, "[[frontend.site]]", true);
    for mount in mounts {
        let mut keys = Keys::new(explicit);
        keys.some("pattern", Some(pattern(&mount.pattern, explicit)));
        route(&mut keys, &mount.route);
        keys.table(out, "[[frontend.site.mount]]", true);
    }
    for exclusion in &site.exclusions {
        let mut keys = Keys::new(explicit);
        keys.some("pattern", Some(pattern(&exclusion.pattern, explicit)));
        keys.some("pool", exclusion.pool.as_deref().map(quote));
        keys.table(out, "[[frontend.site.exclude]]", true);
    }
    if let Some(fallback) = fallback {
        let mut keys = Keys::new(explicit);
        route(&mut keys, fallback);
        keys.table(out, "[frontend.site.fallback]", true);
    }
}

/// What `root` alone means.
fn root_only(files: &Files) -> Route {
    Route {
        action: Action::Files(Files {
            root: files.root.clone(),
            index: vec!["index.html".into()],
            precompressed: true,
            cache_control: None,
        }),
        rewrite: Rewrite::default(),
        compress: None,
    }
}

fn pattern(pattern: &str, explicit: bool) -> String {
    match explicit {
        true => format!("[{}]", quote(pattern)),
        false => quote(pattern),
    }
}

fn route(keys: &mut Keys, route: &Route) {
    let explicit = keys.explicit;
    let mut inner = Keys::new(explicit);
    let name = match &route.action {
        Action::Pool(pool) => {
            keys.some("pool", Some(quote(pool)));
            None
        }
        Action::Files(files) => {
            inner.some("root", Some(path(&files.root)));
            let index = vec!["index.html".into()];
            inner.key("index", &files.index, &index, |names: &Vec<Box<str>>| {
                list(names.iter().map(|name| quote(name)))
            });
            inner.plain("precompressed", files.precompressed, true);
            inner.some("cache_control", files.cache_control.as_ref().map(header));
            Some("files")
        }
        Action::Redirect { status, location } => {
            inner.some("location", Some(quote(location)));
            inner.plain("status", status.as_u16(), 302);
            Some("redirect")
        }
        Action::Respond {
            status,
            content_type,
            body,
        } => {
            inner.plain("status", status.as_u16(), 200);
            let plain = HeaderValue::from_static("text/plain; charset=utf-8");
            inner.key("content_type", content_type, &plain, header);
            response_body(&mut inner, body, false);
            Some("respond")
        }
        Action::Stats(stats) => {
            let format = match stats.format {
                StatsFormat::HaproxyCsv => "haproxy-csv",
                StatsFormat::JkStatus => "jk-status",
            };
            inner.some("format", Some(quote(format)));
            let own: Vec<IpNet> = ["127.0.0.0/8", "::1/128"]
                .map(|net| net.parse().unwrap())
                .to_vec();
            inner.key("allow", &stats.allow, &own, |nets: &Vec<IpNet>| {
                list(nets.iter().map(|net| quote(&net.to_string())))
            });
            Some("stats")
        }
    };
    keys.some(name.unwrap_or_default(), name.map(|_| inner.inline()));
    let r = &route.rewrite;
    let mut inner = Keys::new(explicit);
    inner.some("strip_prefix", r.strip_prefix.as_deref().map(quote));
    inner.some("add_prefix", r.add_prefix.as_deref().map(quote));
    inner.some("host", r.host.as_ref().map(header));
    for (name, changes) in [
        ("request_headers", &r.request_headers),
        ("response_headers", &r.response_headers),
    ] {
        inner.some(
            name,
            (!changes.is_empty()).then(|| list(changes.iter().map(change))),
        );
    }
    if explicit || !inner.lines.is_empty() {
        keys.some("rewrite", Some(inner.inline()));
    }
    keys.key(
        "compress",
        &route.compress,
        &None,
        |compress| match compress {
            None => "false".to_owned(),
            Some(compress) if *compress == Compress::default() => "true".to_owned(),
            Some(compress) => compress.min_bytes.to_string(),
        },
    );
}

fn response_body(keys: &mut Keys, body: &[u8], needed: bool) {
    let text = std::str::from_utf8(body).unwrap();
    if text == files::PAGE {
        keys.some("body_file", Some(path(&files::path("page.html"))));
    } else if needed || keys.explicit || !text.is_empty() {
        keys.some("body", Some(quote(text)));
    }
}

fn change(change: &HeaderChange) -> String {
    match change {
        HeaderChange::Set(name, value) => {
            format!("{{ set = \"{name}\", value = {} }}", header(value))
        }
        HeaderChange::Add(name, value) => {
            format!("{{ add = \"{name}\", value = {} }}", header(value))
        }
        HeaderChange::Remove(name) => format!("{{ remove = \"{name}\" }}"),
    }
}

/// What a pool says for requests; its other keys have been printed.
pub fn pool(out: &mut String, p: &PoolHttp, explicit: bool) {
    let d = PoolHttp::default();
    let mut keys = Keys::new(explicit);
    keys.key("balance", &p.balance, &d.balance, |balance| {
        quote(match balance {
            HttpBalance::RoundRobin => "round-robin",
            HttpBalance::LeastConnections => "least-connections",
            HttpBalance::PowerOfTwo => "power-of-two",
            HttpBalance::Source => "source",
        })
    });
    keys.plain("panic_threshold", p.panic_threshold, d.panic_threshold);
    keys.key(
        "slow_start",
        &p.slow_start,
        &d.slow_start,
        |time| match time.is_zero() {
            true => "false".to_owned(),
            false => ms(*time),
        },
    );
    keys.key("protocol", &p.protocol, &d.protocol, |protocol| {
        quote(&format!("{protocol:?}").to_lowercase())
    });
    if p.protocol == BackendProtocol::Ajp {
        let secret = p.ajp.secret.as_ref();
        keys.some("secret", secret.map(|secret| quote(&secret.0)));
        keys.plain("packet_size", p.ajp.packet_size, d.ajp.packet_size);
    }
    keys.some(
        "send_proxy",
        p.send_proxy
            .map(|v| quote(&format!("{v:?}").to_lowercase())),
    );
    keys.plain(
        "keep_alive_connections",
        p.keep_alive_connections,
        d.keep_alive_connections,
    );
    writeln!(out, "{}", keys.lines.join("\n")).unwrap();
    if let Some(s) = &p.sticky {
        sticky(out, s, explicit);
    }
    let mut keys = Keys::new(explicit);
    keys.plain("length", p.queue.length, d.queue.length);
    keys.time("timeout", p.queue.timeout, d.queue.timeout);
    keys.table(out, "[pool.queue]", false);
    let mut keys = Keys::new(explicit);
    keys.plain("attempts", p.retries.attempts, d.retries.attempts);
    keys.plain(
        "budget_percent",
        p.retries.budget_percent,
        d.retries.budget_percent,
    );
    keys.plain(
        "non_idempotent",
        p.retries.non_idempotent,
        d.retries.non_idempotent,
    );
    keys.key(
        "on_status",
        &p.retries.on_status,
        &d.retries.on_status,
        |on| {
            let statuses = RETRY_STATUS.iter().zip(on).filter(|(_, on)| **on);
            list(statuses.map(|(status, _)| status.to_string()))
        },
    );
    keys.table(out, "[pool.retries]", false);
    let mut keys = Keys::new(explicit);
    match (&p.observe, d.observe.unwrap()) {
        (None, _) => keys.some("enabled", Some("false".into())),
        (Some(o), d) => {
            keys.plain("enabled", true, true);
            keys.plain("failures", o.failures, d.failures);
            keys.plain("status", o.status, d.status);
            keys.time("ejection", o.ejection, d.ejection);
            keys.time(
                "max_ejection",
                o.max_ejection,
                d.max_ejection.max(o.ejection),
            );
        }
    }
    keys.table(out, "[pool.observe]", false);
    if let Some(t) = &p.tls {
        let mut keys = Keys::new(explicit);
        keys.plain("verify", t.verify != Verify::Off, true);
        if let Verify::Authorities(file) = &t.verify {
            keys.some("authorities", Some(path(file)));
        }
        keys.some("server_name", t.server_name.as_deref().map(quote));
        if let Some(files) = &t.certificate {
            pair(&mut keys, files);
        }
        keys.table(out, "[pool.tls]", true);
    }
    if p.protocol == BackendProtocol::Ajp {
        let (ping, d) = (&p.ajp.ping, &d.ajp.ping);
        let mut keys = Keys::new(explicit);
        keys.plain("connect", ping.connect, d.connect);
        keys.key("reuse", &ping.reuse, &d.reuse, |reuse| match reuse {
            None => "false".to_owned(),
            Some(Duration::ZERO) => "true".to_owned(),
            Some(time) => ms(*time),
        });
        keys.time("timeout", ping.timeout, d.timeout);
        keys.table(out, "[pool.ping]", false);
    }
    let (t, d) = (&p.timeouts, d.timeouts);
    let mut keys = Keys::new(explicit);
    keys.time("connect", t.connect, d.connect);
    keys.time("response", t.response, d.response);
    keys.time("idle", t.idle, d.idle);
    keys.off("request", t.request.map(ms), d.request.map(ms));
    keys.time("tunnel", t.tunnel, d.tunnel);
    keys.time("keep_alive", t.keep_alive, d.keep_alive);
    keys.table(out, "[pool.timeouts]", false);
    if let Some(page) = &p.maintenance {
        let mut keys = Keys::new(explicit);
        keys.plain("status", page.status.as_u16(), 503);
        let html = HeaderValue::from_static("text/html; charset=utf-8");
        keys.key("content_type", &page.content_type, &html, header);
        response_body(&mut keys, &page.body, true);
        keys.table(out, "[pool.maintenance]", true);
    }
}

fn sticky(out: &mut String, sticky: &Sticky, explicit: bool) {
    let mut keys = Keys::new(explicit);
    let mut kind = |word: &str| keys.lines.push(format!("type = \"{word}\""));
    match sticky {
        Sticky::Route(route) => {
            kind("route");
            let d = StickyRoute::default();
            keys.key("cookie", &route.cookie, &d.cookie, |name| quote(name));
            keys.key(
                "parameter",
                &route.parameter,
                &d.parameter,
                |name| match name.is_empty() {
                    true => "false".to_owned(),
                    false => quote(name),
                },
            );
            keys.plain("force", route.force, false);
        }
        Sticky::Cookie(cookie) => {
            kind("cookie");
            keys.some("key_file", Some(path(&files::path("cookie.key"))));
            keys.key("cookie", &cookie.name, &"BALANCER".into(), |name| {
                quote(name)
            });
            let opaque = matches!(cookie.value, CookieValue::Opaque(_));
            keys.key("value", &opaque, &false, |opaque| match opaque {
                true => "\"opaque\"".to_owned(),
                false => "\"signed\"".to_owned(),
            });
            keys.plain("force", cookie.force, false);
            attributes(&mut keys, &cookie.attributes);
        }
        Sticky::Learn(learn) => {
            kind("learn");
            keys.some("cookie", Some(quote(&learn.cookie)));
            keys.time("idle", learn.idle, Duration::from_secs(1_800));
            keys.plain("force", learn.force, false);
        }
        Sticky::Source {
            ipv4_prefix,
            ipv6_prefix,
        } => {
            kind("source");
            keys.plain("ipv4_prefix", *ipv4_prefix, 32);
            keys.plain("ipv6_prefix", *ipv6_prefix, 64);
        }
    }
    keys.table(out, "[pool.sticky]", true);
}

fn attributes(keys: &mut Keys, a: &CookieAttributes) {
    let d = CookieAttributes::default();
    keys.key("path", &a.path, &d.path, |path| quote(path));
    keys.some("domain", a.domain.as_deref().map(quote));
    keys.some(
        "max_age",
        a.max_age.map(|age| format!("\"{}s\"", age.as_secs())),
    );
    keys.plain("secure", a.secure, d.secure);
    keys.plain("http_only", a.http_only, d.http_only);
    keys.key("same_site", &a.same_site, &d.same_site, |site| match site {
        Some(site) => quote(&format!("{site:?}").to_lowercase()),
        None => "false".to_owned(),
    });
    keys.plain("partitioned", a.partitioned, d.partitioned);
}

/// What a backend says for requests.
pub fn backend(backend: &Backend, explicit: bool) -> String {
    let (http, name) = (&backend.http, &backend.name);
    let mut keys = Keys::new(explicit);
    keys.key("route", &http.route, name, |route| quote(route));
    keys.some("domain", http.domain.as_deref().map(quote));
    keys.some("redirect", http.redirect.as_deref().map(quote));
    keys.plain("priority", http.priority, 0);
    keys.off("max_connections", http.max_connections, None);
    keys.some("http_port", http.http_port.map(|port| port.to_string()));
    let secret = http.secret.as_ref();
    keys.some("secret", secret.map(|secret| quote(&secret.0)));
    keys.lines.join("\n")
}
