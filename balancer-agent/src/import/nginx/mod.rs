//! nginx's configuration.
//!
//! - `lex`: directives and includes; `upstream`: pools; `server`: frontends and sites;
//!   `location`, `pass`, `answer`: what becomes of requests; `reasons`: why something is not carried over.

mod answer;
mod lex;
mod location;
mod pass;
mod reasons;
mod server;
mod upstream;

use std::collections::HashMap;
use std::path::Path;

use super::draft::{Table, Value};
use super::names::Names;
use super::source::{ImportError, Reader};
use super::{Imported, Options, Report, finish};
use lex::Node;

/// What the parts of an import share.
struct Context<'a> {
    options: &'a Options,
    report: Report,
    names: Names,
    pool_names: Names,
    /// Pools by scheme and what `proxy_pass` names.
    pools: HashMap<String, String>,
    /// In the order in which they were made.
    tables: Vec<Table>,
    steered: bool,
}

/// Imports a file.
pub fn import(file: &Path, options: &Options) -> Result<Imported, ImportError> {
    let mut report = Report::default();
    let nodes = lex::read(file, &mut Reader::default(), &mut report)?;
    let name = file.display().to_string();
    if !nodes
        .iter()
        .any(|n| matches!(n.name.as_str(), "http" | "stream" | "server" | "upstream"))
    {
        let expected = "`http`, `stream` or `server`: is this an nginx.conf?";
        return Err(ImportError::whole(&name, "has no server in it", expected));
    }
    let mut cx = Context {
        options,
        report,
        names: Names::default(),
        pool_names: Names::default(),
        pools: HashMap::new(),
        tables: Vec::new(),
        steered: false,
    };
    let mut root = Table::default();
    for node in &nodes {
        match node.name.as_str() {
            "http" => http(node.inside(), node, &mut root, &mut cx),
            "stream" => stream(node.inside(), &mut root, &mut cx),
            "server" | "upstream" => {}
            "worker_processes" => {
                // One for each core is the default.
                if let Ok(number) = node.arg(0).parse::<u64>() {
                    root.table("http").set("threads", number, &node.place);
                }
            }
            _ => reasons::left(node, &mut cx.report),
        }
    }
    // A file of `conf.d` alone: servers and upstreams without a block around them.
    if nodes
        .iter()
        .any(|n| n.name == "server" || n.name == "upstream")
    {
        let outer = Node {
            name: "http".to_owned(),
            args: Vec::new(),
            place: nodes[0].place.clone(),
            block: None,
        };
        let inside: Vec<Node> = nodes
            .iter()
            .filter(|n| n.name == "server" || n.name == "upstream")
            .cloned()
            .collect();
        http(&inside, &outer, &mut root, &mut cx);
    }
    for pool in std::mem::take(&mut cx.tables) {
        root.push(pool);
    }
    if cx.steered {
        let interfaces = match options.interfaces.is_empty() {
            true => vec!["eth0".to_owned()],
            false => options.interfaces.clone(),
        };
        let items = interfaces.iter().map(|text| text.as_str().into());
        let xdp = root.table("xdp");
        xdp.comment = Some("The clients' side and the servers' side.".to_owned());
        xdp.set_own("interfaces", Value::Texts(items.collect()));
        root.bring_forward("xdp");
    }
    let head = format!("Made of {name} by `balancer import nginx`; see docs/import.md.");
    finish::finish(root, &name, &head, cx.report)
}

fn upstreams(nodes: &[Node], cx: &mut Context<'_>) {
    for node in nodes.iter().filter(|node| node.name == "upstream") {
        if let Some(pool) = upstream::pool(node, cx) {
            let name = pool.text("name").unwrap_or_default().to_owned();
            cx.pools.insert(node.arg(0).to_owned(), name);
            cx.tables.push(pool);
        }
    }
}

fn http(nodes: &[Node], outer: &Node, root: &mut Table, cx: &mut Context<'_>) {
    upstreams(nodes, cx);
    for node in nodes {
        match node.name.as_str() {
            "upstream" | "server" => {}
            _ => reasons::left(node, &mut cx.report),
        }
    }
    let level = Node {
        block: Some(nodes.to_vec()),
        ..outer.clone()
    };
    server::frontends(&level, root, cx);
}

/// `stream`: connections, which are steered in the kernel.
fn stream(nodes: &[Node], root: &mut Table, cx: &mut Context<'_>) {
    upstreams(nodes, cx);
    for node in nodes {
        match node.name.as_str() {
            "upstream" => {}
            "server" => server::steered(node, root, cx),
            _ => reasons::left(node, &mut cx.report),
        }
    }
}
