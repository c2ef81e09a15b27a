//! What a server says: names, files, mounts, redirects, certificates.

use std::path::{Path, PathBuf};

use super::collect::{Directive, Host};
use super::lex::Node;
use super::reasons::reason;
use crate::import::draft::{self, Table};
use crate::import::source::{ImportError, Place, Reader};
use crate::import::workers::map::Mounts;
use crate::import::{Report, names, rules};

/// A server as far as it is understood.
#[derive(Clone, Debug, Default)]
pub struct Server {
    /// Addresses of `<VirtualHost>`.
    pub addresses: Vec<String>,
    /// Where it begins; `None` for the main server.
    pub place: Option<Place>,
    /// Its first directive.
    pub first: Option<Place>,
    /// `ServerName` and `ServerAlias`.
    pub names: Vec<(String, Place)>,
    root: Option<(String, Place)>,
    index: Option<(Vec<String>, Place)>,
    /// Those of mod_jk.
    pub mounts: Mounts,
    /// `JkMountCopy On`.
    pub copy: bool,
    /// `JkMountCopy All`.
    pub copy_all: bool,
    others: Vec<Table>,
    /// What TLS needs.
    pub tls: Tls,
    /// Where everything is redirected to HTTPS, and the host that it leads to; `None` is the
    /// one that was asked for.
    https: Option<(Option<String>, Place)>,
    timeout: Option<(u64, Place)>,
    keep_alive: Option<(u64, Place)>,
    body: Option<(u64, Place)>,
}

/// `SSL...`
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// `SSLEngine on`.
    pub on: bool,
    certificates: Vec<(String, Place)>,
    keys: Vec<(String, Place)>,
    authorities: Option<(String, Place)>,
    verify: Option<(&'static str, Place)>,
    minimum: Option<(&'static str, Place)>,
}

impl Server {
    /// Reads a server; a virtual host has what the main one says.
    pub fn read(
        host: &Host,
        root: Roots<'_>,
        main: Option<&Server>,
        reader: &mut Reader,
        report: &mut Report,
    ) -> Result<Self, ImportError> {
        let mut server = match main {
            Some(main) => Self {
                names: Vec::new(),
                mounts: Mounts::default(),
                copy: false,
                https: None,
                ..main.clone()
            },
            None => Self::default(),
        };
        server.addresses.clone_from(&host.addresses);
        server.place.clone_from(&host.place);
        server.first = host.directives.first().map(|d| d.node.place.clone());
        let own_certificates = host
            .directives
            .iter()
            .any(|d| d.node.name == "sslcertificatefile");
        if own_certificates {
            server.tls.certificates.clear();
            server.tls.keys.clear();
        }
        let mut conditions: Vec<&Node> = Vec::new();
        for directive in &host.directives {
            server.directive(directive, root, reader, report, &mut conditions)?;
        }
        for node in conditions {
            report.left(&node.place, node.shown(), REWRITE);
        }
        Ok(server)
    }

    fn directive<'a>(
        &mut self,
        directive: &'a Directive,
        (root, beside): Roots<'_>,
        reader: &mut Reader,
        report: &mut Report,
        conditions: &mut Vec<&'a Node>,
    ) -> Result<(), ImportError> {
        let node = &directive.node;
        let place = &node.place;
        let absolute = |text: &str| root.join(text).display().to_string();
        if let Some((section, argument)) = directive.within.last() {
            self.within(node, section, argument, report);
            return Ok(());
        }
        match node.name.as_str() {
            "servername" => {
                // `https://name:443` is allowed.
                let name = node.arg(0);
                let name = name.split_once("://").map_or(name, |(_, name)| name);
                self.name(names::without_port(name), place, true, report);
            }
            "serveralias" => {
                for name in &node.args {
                    self.name(name, place, false, report);
                }
            }
            "documentroot" => self.root = Some((absolute(node.arg(0)), place.clone())),
            "directoryindex" => self.index = Some((node.args.clone(), place.clone())),
            "jkmount" | "jkunmount" => {
                let excluded = node.name == "jkunmount";
                match (node.arg(0), node.arg(1)) {
                    (_, "") => report.left(place, node.shown(), "there is no worker"),
                    (pattern, worker) => self.mounts.add(pattern, worker, excluded, place, report),
                }
            }
            "jkmountfile" => match reader.read(&found(node.arg(0), (root, beside))) {
                Ok(source) => self.mounts.file(&source, report)?,
                Err(error) => {
                    let reason = format!("{}: name it with --map", error.message);
                    report.left(place, node.shown(), reason);
                }
            },
            "jkmountcopy" => match node.arg(0).to_ascii_lowercase().as_str() {
                "on" => self.copy = true,
                "all" => (self.copy, self.copy_all) = (true, true),
                _ => self.copy = false,
            },
            "jkworkersfile" => {
                // It is the file that was named.
            }
            "alias" => self.alias(node.arg(0), &absolute(node.arg(1)), node, report),
            "redirect" | "redirectpermanent" | "redirecttemp" => self.redirect(node, report),
            "redirectmatch" => {
                report.left(place, node.shown(), "write it as a mount with `redirect`")
            }
            "rewriteengine" if node.arg(0).eq_ignore_ascii_case("on") => {}
            "rewriteengine" => {}
            "rewritecond" => conditions.push(node),
            "rewriterule" => self.rewrite(node, conditions, report),
            "sslengine" => self.tls.on = node.arg(0).eq_ignore_ascii_case("on"),
            "sslcertificatefile" => self
                .tls
                .certificates
                .push((absolute(node.arg(0)), place.clone())),
            "sslcertificatekeyfile" => self.tls.keys.push((absolute(node.arg(0)), place.clone())),
            "sslcacertificatefile" => {
                self.tls.authorities = Some((absolute(node.arg(0)), place.clone()))
            }
            "sslverifyclient" => {
                self.tls.verify = match node.arg(0).to_ascii_lowercase().as_str() {
                    "require" => Some(("required", place.clone())),
                    "optional" => Some(("optional", place.clone())),
                    _ => None,
                };
            }
            "sslprotocol" => {
                let text = node.args.join(" ").to_ascii_lowercase();
                // `-all +TLSv1.3`, `TLSv1.3`, `all -TLSv1.2 ...`
                let no_12 = text.contains("-tlsv1.2")
                    || (!text.contains("tlsv1.2") && !text.split(' ').any(|w| w == "all"));
                if no_12 && (text.contains("tlsv1.3") || text.contains("all")) {
                    self.tls.minimum = Some(("1.3", place.clone()));
                }
            }
            "timeout" | "keepalivetimeout" | "limitrequestbody" => {
                let value = node.arg(0);
                let number = match value.strip_suffix("ms") {
                    Some(ms) => ms.parse::<u64>().ok(),
                    None if node.name == "limitrequestbody" => value.parse().ok(),
                    None => value.parse::<u64>().ok().map(|s| s.saturating_mul(1_000)),
                };
                match (number, node.name.as_str()) {
                    (None, _) => report.left(place, node.shown(), "is no number"),
                    (Some(0), "limitrequestbody") => {
                        report.left(place, node.shown(), "no limit: `body_bytes = false`")
                    }
                    (Some(0), _) => report.left(place, node.shown(), "times are not 0"),
                    (Some(n), "timeout") => self.timeout = Some((n, place.clone())),
                    (Some(n), "keepalivetimeout") => self.keep_alive = Some((n, place.clone())),
                    (Some(n), _) => self.body = Some((n, place.clone())),
                }
            }
            name => report.left(place, node.shown(), reason(name)),
        }
        Ok(())
    }

    /// A directive of `<Location>`, `<Directory>` and the like.
    fn within(&mut self, node: &Node, section: &str, argument: &str, report: &mut Report) {
        let place = &node.place;
        let what = format!("{} in <{section} {argument}>", node.shown());
        match (node.name.as_str(), section) {
            ("jkmount" | "jkunmount", "location") if !argument.starts_with('~') => {
                let excluded = node.name == "jkunmount";
                self.mounts
                    .add(argument, node.arg(0), excluded, place, report);
            }
            (
                "require" | "order" | "deny" | "allow" | "satisfy" | "authtype" | "authname"
                | "authuserfile" | "authbasicprovider" | "requireall",
                _,
            ) => {
                let open = node.name == "require" && node.args == ["all", "granted"];
                let open = open || (node.name == "allow" && node.args == ["from", "all"]);
                let whole = section == "directory" && argument == "/";
                let reason = match open {
                    false if whole => "not needed here: only document roots and aliases are served",
                    true => "not needed here: nothing is restricted",
                    false => {
                        "ACCESS IS NOT RESTRICTED HERE: write a mount with `respond = { status = 403 }`, or leave it to the application"
                    }
                };
                report.left(place, what, reason);
            }
            (name, _) => report.left(place, what, reason(name)),
        }
    }

    fn name(&mut self, text: &str, place: &Place, first: bool, report: &mut Report) {
        match names::host(text) {
            // `ServerName` comes first wherever it stands.
            Some(host) if first => self.names.insert(0, (host, place.clone())),
            Some(host) => self.names.push((host, place.clone())),
            None => report.left(
                place,
                text,
                "a host is a whole name, or `*.` and the end of one",
            ),
        }
    }

    fn alias(&mut self, prefix: &str, folder: &str, node: &Node, report: &mut Report) {
        let place = &node.place;
        let Some(plain) = rules::plain(prefix).filter(|p| p.starts_with('/') && *p != "/") else {
            report.left(place, node.shown(), "write it as a mount with `files`");
            return;
        };
        if !Path::new(folder).is_absolute() {
            report.left(place, node.shown(), "write the whole path of the folder");
            return;
        }
        let short = plain.trim_end_matches('/');
        let mut mount = Table::one_of("mount", place);
        if !plain.ends_with('/') {
            mount.add("pattern", short, place);
        }
        mount.add("pattern", format!("{short}/*"), place);
        let folder = folder.trim_end_matches('/');
        mount
            .table("files")
            .set("root", if folder.is_empty() { "/" } else { folder }, place);
        mount.table("rewrite").set("strip_prefix", short, place);
        self.others.push(mount);
    }

    fn redirect(&mut self, node: &Node, report: &mut Report) {
        let place = &node.place;
        let mut args: Vec<&str> = node.args.iter().map(String::as_str).collect();
        let mut status = match node.name.as_str() {
            "redirectpermanent" => 301,
            _ => 302,
        };
        if let Some(word) = args.first().filter(|word| !word.starts_with('/')) {
            status = match *word {
                "permanent" => 301,
                "temp" => 302,
                "seeother" => 303,
                "gone" => 410,
                word => word.parse().unwrap_or(0),
            };
            args.remove(0);
        }
        let (from, to) = match args[..] {
            [from, to] => (from, to),
            [from] if status >= 400 => (from, ""),
            _ => {
                report.left(place, node.shown(), "write it as a mount with `redirect`");
                return;
            }
        };
        let Some(plain) = rules::plain(from) else {
            report.left(place, node.shown(), "write it as a mount with `redirect`");
            return;
        };
        let mut mount = Table::one_of("mount", place);
        let short = plain.trim_end_matches('/');
        if status >= 400 {
            mount.add("pattern", plain, place);
            mount.add("pattern", format!("{short}/*"), place);
            mount.table("respond").set("status", status, place);
            self.others.push(mount);
            return;
        }
        if let (true, Some(host)) = (short.is_empty(), to.strip_prefix("https://")) {
            let host = host.trim_end_matches('/').to_ascii_lowercase();
            if !host.contains('/') {
                self.https = Some((Some(host), place.clone()));
            }
        }
        // What follows the prefix is put behind the new place: that is the whole path where
        // both end alike.
        let base = to.trim_end_matches('/');
        match base.strip_suffix(short) {
            Some(before) if !before.is_empty() || short.is_empty() => {
                if short.is_empty() {
                    mount.add("pattern", "/*", place);
                } else {
                    mount.add("pattern", short, place);
                    mount.add("pattern", format!("{short}/*"), place);
                }
                mount.table("redirect").set(
                    "location",
                    format!("{before}{{path}}{{query}}"),
                    place,
                );
            }
            _ => {
                mount.add("pattern", plain, place);
                mount
                    .table("redirect")
                    .set("location", format!("{to}{{query}}"), place);
                let reason =
                    "only this very path: what is below it can't be put behind another one";
                report.note(place, node.shown(), reason);
            }
        }
        mount.table("redirect").set("status", status, place);
        self.others.push(mount);
    }

    /// The one form that everyone has: all of it to HTTPS.
    fn rewrite<'a>(&mut self, node: &'a Node, conditions: &mut Vec<&'a Node>, report: &mut Report) {
        let all = matches!(
            node.arg(0),
            "^" | "^(.*)$" | "(.*)" | ".*" | "^.*$" | "^/(.*)$" | "^/?(.*)" | "^/?(.*)$" | "^(.*)"
        );
        let target = node.arg(1);
        let https = target.starts_with("https://%{HTTP_HOST}")
            || target.starts_with("https://%{SERVER_NAME}");
        let plain = conditions.iter().all(|condition| {
            matches!(
                (condition.arg(0), condition.arg(1)),
                ("%{HTTPS}", "off" | "!=on" | "!on" | "=off")
                    | ("%{SERVER_PORT}", "80" | "^80$" | "!^443$" | "!443")
            )
        });
        let flags = node.arg(2).to_ascii_uppercase();
        if all && https && plain && flags.contains('R') && self.place.is_some() {
            self.https = Some((None, node.place.clone()));
            let mut mount = Table::one_of("mount", &node.place);
            mount.add("pattern", "/*", &node.place);
            let redirect = mount.table("redirect");
            redirect.set("location", "https://{host}{path}{query}", &node.place);
            redirect.set("status", 301, &node.place);
            self.others.push(mount);
            conditions.clear();
            return;
        }
        for condition in conditions.drain(..) {
            report.left(&condition.place, condition.shown(), REWRITE);
        }
        report.left(&node.place, node.shown(), REWRITE);
    }
}

/// `ServerRoot`, and where else files are looked for.
type Roots<'a> = (&'a Path, &'a [PathBuf]);

/// The first of these that is there, or the one that was meant.
fn found(name: &str, (root, beside): Roots<'_>) -> PathBuf {
    let meant = root.join(name);
    let others = beside.iter().map(|folder| folder.join(name));
    let mut all = std::iter::once(meant.clone()).chain(others);
    all.find(|path| path.is_file()).unwrap_or(meant)
}

impl Server {
    /// Where it says that all of it goes to HTTPS at the very host that was asked for.
    pub fn to_https(&self) -> Option<&Place> {
        let (host, place) = self.https.as_ref()?;
        let own = match host {
            None => true,
            Some(host) => !self.names.is_empty() && self.names.iter().all(|(name, _)| name == host),
        };
        own.then_some(place)
    }
}

const REWRITE: &str =
    "paths are changed by prefix (`rewrite`), clients sent elsewhere by mounts with `redirect`";

/// Mounts that are not mod_jk's. `workers` are those that are.
pub fn mounts(server: &Server, workers: &[Table], report: &mut Report) -> Vec<Table> {
    let pattern = |table: &Table| match table.get("pattern") {
        Some(draft::Value::Texts(items)) => items.iter().map(|item| item.text.clone()).collect(),
        _ => Vec::new(),
    };
    let mut taken: Vec<String> = workers.iter().flat_map(pattern).collect();
    let mut out = Vec::new();
    for mount in &server.others {
        let location = mount.known("redirect").and_then(|r| r.text("location"));
        if server.tls.on && location == Some("https://{host}{path}{query}") {
            // The condition is that it is not there yet.
            continue;
        }
        let own: Vec<String> = pattern(mount);
        if let (true, Some(place)) = (own.iter().any(|p| taken.contains(p)), &mount.place) {
            report.left(
                place,
                own.join(" "),
                "a worker is mounted there, or it is written twice",
            );
            continue;
        }
        taken.extend(own);
        out.push(mount.clone());
    }
    out
}

/// The document root, as the site's short form or a fallback.
pub fn documents(site: &mut Table, server: &Server) {
    let Some((root, place)) = &server.root else {
        return;
    };
    match &server.index {
        None => _ = site.set("root", root.as_str(), place),
        Some((names, at)) => {
            let files = site.table("fallback").table("files");
            files.set("root", root.as_str(), place);
            for name in names.iter().filter(|name| *name != "disabled") {
                files.add("index", name.as_str(), at);
            }
        }
    }
}

/// TLS of a frontend, by all of its servers that speak it.
pub fn tls(table: &mut Table, first: &Server, servers: &[&&Server], report: &mut Report) {
    let own = table.table("tls");
    if let Some((minimum, place)) = &first.tls.minimum {
        own.set("minimum", *minimum, place);
    }
    match (&first.tls.verify, &first.tls.authorities) {
        (Some((verify, at)), Some((file, place))) => {
            own.set("client_auth", *verify, at)
                .set("client_authorities", file.as_str(), place);
        }
        (Some((_, at)), None) => {
            report.left(
                at,
                "SSLVerifyClient",
                "ACCESS IS NOT RESTRICTED HERE: there is no SSLCACertificateFile",
            );
        }
        _ => {}
    }
    let mut seen: Vec<&str> = Vec::new();
    for server in servers {
        for (at, (file, place)) in server.tls.certificates.iter().enumerate() {
            if seen.contains(&file.as_str()) {
                continue;
            }
            seen.push(file);
            let mut certificate = Table::one_of("certificate", place);
            certificate.set("certificate", file.as_str(), place);
            match server.tls.keys.get(at) {
                Some((key, place)) => _ = certificate.set("key", key.as_str(), place),
                // The key may be in the same file.
                None => _ = certificate.set("key", file.as_str(), place),
            }
            own.push(certificate);
        }
    }
}

/// Times and limits.
pub fn limits(table: &mut Table, server: &Server) {
    if let Some((time, place)) = &server.timeout {
        for key in ["body_idle", "send"] {
            table
                .table("timeouts")
                .set(key, draft::duration(*time), place);
        }
    }
    if let Some((time, place)) = &server.keep_alive {
        table
            .table("timeouts")
            .set("keep_alive", draft::duration(*time), place);
    }
    if let Some((bytes, place)) = &server.body {
        table.table("limits").set("body_bytes", *bytes, place);
    }
}
