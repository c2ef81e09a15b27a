//! HAProxy's configuration (configuration manual of 2.6).
//!
//! - `lex`: words; `sections`: which line belongs where; `acl`: conditions;
//! - `bind`, `listener`, `frontend`, `headers`: frontends; `server`, `backend`, `sticky`:
//!   pools;
//! - `reasons`: why something is not carried over.

mod acl;
mod backend;
mod bind;
mod frontend;
mod headers;
mod lex;
mod listener;
mod reasons;
mod sections;
mod server;
mod sticky;

use std::collections::HashMap;

use super::draft::Table;
use super::names::Names;
use super::source::{ImportError, Source};
use super::{Imported, Options, Report, finish};
use sections::{File, Kind};

/// What the parts of an import share.
struct Context<'a> {
    file: &'a File,
    options: &'a Options,
    report: Report,
    root: Table,
    names: Names,
    pool_names: Names,
    /// The pool that became of a backend.
    pools: HashMap<String, String>,
    /// Whether a frontend is steered in the kernel.
    steered: bool,
    /// The oldest version of TLS, by `ssl-default-bind-options`.
    tls_minimum: Option<&'static str>,
}

impl Context<'_> {
    /// The value of a word in `global`.
    fn global_value(&self, word: &str) -> Option<String> {
        let line = self
            .file
            .global
            .iter()
            .rev()
            .find(|line| line.word(0) == word)?;
        Some(line.word(1).to_owned())
    }
}

/// Imports a file.
pub fn import(source: &Source, options: &Options) -> Result<Imported, ImportError> {
    let mut report = Report::default();
    let file = sections::read(source, options, &mut report)?;
    if file.proxies.is_empty() {
        let expected = "`frontend`, `backend` or `listen`: is this an haproxy.cfg?";
        return Err(ImportError::whole(
            &source.name,
            "has no proxy in it",
            expected,
        ));
    }
    let mut cx = Context {
        file: &file,
        options,
        report,
        root: Table::default(),
        names: Names::default(),
        pool_names: Names::default(),
        pools: HashMap::new(),
        steered: false,
        tls_minimum: None,
    };
    global(&mut cx);
    let mut pools = Vec::new();
    let disabled =
        |proxy: &sections::Proxy| proxy.lines.iter().any(|line| line.word(0) == "disabled");
    for proxy in &file.proxies {
        if disabled(proxy) {
            let reason = "it is disabled";
            cx.report.left(&proxy.place, &proxy.name, reason);
            continue;
        }
        let servers = proxy.lines.iter().any(|line| line.word(0) == "server");
        let has_pool = proxy.kind == Kind::Backend || (proxy.kind == Kind::Listen && servers);
        if has_pool && let Some(pool) = backend::pool(proxy, &mut cx) {
            let name = pool.text("name").unwrap_or_default().to_owned();
            cx.pools.entry(proxy.name.clone()).or_insert(name);
            pools.push(pool);
        }
    }
    for proxy in &file.proxies {
        if proxy.kind != Kind::Backend && !disabled(proxy) {
            frontend::frontends(proxy, &mut cx);
        }
    }
    for pool in pools {
        cx.root.push(pool);
    }
    left_over(&mut cx);
    if cx.steered {
        let interfaces = match options.interfaces.is_empty() {
            true => vec!["eth0".to_owned()],
            false => options.interfaces.clone(),
        };
        let xdp = cx.root.table("xdp");
        xdp.comment = Some("The clients' side and the servers' side.".to_owned());
        let items = interfaces.into_iter().map(|text| text.as_str().into());
        xdp.set_own("interfaces", super::draft::Value::Texts(items.collect()));
        cx.root.bring_forward("xdp");
    }
    let Context { root, report, .. } = cx;
    let head = format!(
        "Made of {} by `balancer import haproxy`; see docs/import.md.",
        source.name
    );
    finish::finish(root, &source.name, &head, report)
}

fn global(cx: &mut Context<'_>) {
    let file = cx.file;
    for line in &file.global {
        match line.word(0) {
            "maxconn" => match line.word(1).parse::<u64>() {
                Ok(number @ 1..) => {
                    cx.root
                        .table("http")
                        .set("max_connections", number, &line.place);
                }
                _ => cx
                    .report
                    .left(&line.place, line.shown(), "is no number of connections"),
            },
            "nbthread" => match line.word(1).parse::<u64>() {
                Ok(number @ 1..) => _ = cx.root.table("http").set("threads", number, &line.place),
                _ => cx
                    .report
                    .left(&line.place, line.shown(), "is no number of threads"),
            },
            "crt-base" | "ca-base" => {}
            "ssl-default-bind-options" => {
                let mut words = line.from(1).iter().map(String::as_str);
                while let Some(word) = words.next() {
                    match word {
                        "ssl-min-ver" => {
                            cx.tls_minimum = bind::version(words.next().unwrap_or_default())
                        }
                        "no-tlsv12" => cx.tls_minimum = Some("1.3"),
                        "no-sslv3" | "no-tlsv10" | "no-tlsv11" | "no-tls-tickets" => {}
                        word => cx.report.left(
                            &line.place,
                            word,
                            reasons::global("ssl-default-bind-ciphers"),
                        ),
                    }
                }
            }
            word => cx
                .report
                .left(&line.place, line.shown(), reasons::global(word)),
        }
    }
}

/// Reports the lines that nothing was made of.
fn left_over(cx: &mut Context<'_>) {
    let file = cx.file;
    for line in file.defaults.iter().flat_map(|d| &d.lines) {
        frontend::rest(line, &mut cx.report);
    }
    for proxy in &file.proxies {
        let http = file.is_http(proxy);
        for line in &proxy.lines {
            if proxy.kind == Kind::Backend {
                let conditional = matches!(
                    line.word(0),
                    "http-request" | "redirect" | "use_backend" | "block" | "acl"
                );
                let header = matches!(line.word(1), "set-header" | "add-header" | "del-header");
                if conditional && !header && line.word(0) != "acl" {
                    let denied = matches!(line.word(1), "deny" | "auth" | "reject")
                        || line.word(0) == "block";
                    let reason = match denied {
                        true => {
                            "ACCESS IS NOT RESTRICTED HERE: rules are those of frontends, write a mount there"
                        }
                        false => "rules are those of frontends: write a mount there",
                    };
                    cx.report.left(&line.place, line.shown(), reason);
                    continue;
                }
            }
            if !http
                && line.word(0) == "timeout"
                && matches!(line.word(1), "client" | "server" | "connect" | "tunnel")
            {
                let reason =
                    "connections that are steered in the kernel are forgotten by `[timeouts]`";
                cx.report.left(&line.place, line.shown(), reason);
                continue;
            }
            if !http
                && matches!(
                    line.word(0),
                    "cookie"
                        | "appsession"
                        | "stick"
                        | "stick-table"
                        | "errorfile"
                        | "http-request"
                )
            {
                let reason =
                    "connections in TCP mode are steered in the kernel: nothing looks into them";
                cx.report.left(&line.place, line.shown(), reason);
                continue;
            }
            frontend::rest(line, &mut cx.report);
        }
    }
}
