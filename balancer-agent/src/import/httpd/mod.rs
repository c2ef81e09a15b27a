//! The parts of Apache httpd's configuration that stand before mod_jk: where it listens,
//! virtual hosts, mounts, static files, redirects and certificates.
//!
//! - `lex`: nodes; `collect`: includes and conditions; `host`: what a server says; `reasons`:
//!   what it says in vain;
//! - here: which server answers where.

mod collect;
mod host;
mod lex;
mod reasons;

use std::net::IpAddr;
use std::path::Path;

use super::draft::Table;
use super::names::{self, Names};
use super::source::{ImportError, Place, Reader};
use super::workers::map::{Mount, Mounts};
use super::workers::{self, Targets};
use super::{Options, Report, sites};
use host::Server;

/// A whole configuration.
#[derive(Debug)]
pub struct Httpd {
    main: Server,
    hosts: Vec<Server>,
    listen: Vec<Listen>,
    /// `JkWorkerProperty`.
    pub worker_properties: Vec<(Place, String)>,
}

/// `Listen`.
#[derive(Clone, Debug, PartialEq)]
struct Listen {
    ip: Option<IpAddr>,
    port: u16,
    place: Place,
}

impl Httpd {
    /// The mounts of all servers.
    pub fn rules(&self) -> impl Iterator<Item = &Mount> {
        let all = std::iter::once(&self.main).chain(&self.hosts);
        all.flat_map(|server| &server.mounts.rules)
    }
}

/// Reads a file and those that it includes.
pub fn read(
    file: &Path,
    reader: &mut Reader,
    options: &Options,
    report: &mut Report,
) -> Result<Httpd, ImportError> {
    let all = collect::collect(file, reader, options, report)?;
    let mut listen = Vec::new();
    let mut worker_properties = Vec::new();
    let mut main = all.main;
    main.directives
        .retain(|directive| match directive.node.name.as_str() {
            "listen" => {
                match listened(directive.node.arg(0)) {
                    Some((ip, port)) => listen.push(Listen {
                        ip,
                        port,
                        place: directive.node.place.clone(),
                    }),
                    None => report.left(
                        &directive.node.place,
                        directive.node.shown(),
                        "is no address and port",
                    ),
                }
                false
            }
            "jkworkerproperty" => {
                worker_properties
                    .push((directive.node.place.clone(), directive.node.args.join(" ")));
                false
            }
            _ => true,
        });
    let base = Server::read(&main, (&all.root, &all.beside), None, reader, report)?;
    let mut hosts = Vec::new();
    for host in &all.hosts {
        hosts.push(Server::read(
            host,
            (&all.root, &all.beside),
            Some(&base),
            reader,
            report,
        )?);
    }
    Ok(Httpd {
        main: base,
        hosts,
        listen,
        worker_properties,
    })
}

/// `80`, `10.0.0.1:80`, `[::1]:80`. Without an address it is every one, of both families.
fn listened(text: &str) -> Option<(Option<IpAddr>, u16)> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    if let Some(port) = port(text) {
        return Some((None, port));
    }
    let (host, number) = names::split_port(text, false);
    let ip = match host {
        "*" => None,
        host => Some(host.parse().ok()?),
    };
    Some((ip, port(number?)?))
}

/// Where a virtual host is.
struct At {
    ip: Option<IpAddr>,
    port: Option<u16>,
}

fn at(address: &str) -> Option<At> {
    let (host, port) = match address.strip_prefix('[') {
        Some(_) => names::split_port(address, false),
        None => match address.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        },
    };
    let ip = match host {
        "*" | "_default_" => None,
        host => Some(host.parse().ok()?),
    };
    let port = match port {
        None | Some("*") => None,
        Some(port) => Some(port.parse().ok()?),
    };
    Some(At { ip, port })
}

/// Makes the frontends. `extra` are the rules of a map beside the configuration.
pub fn frontends(
    httpd: &Httpd,
    extra: &Mounts,
    targets: &Targets,
    root: &mut Table,
    report: &mut Report,
) {
    let mut names = Names::default();
    let mut used: Vec<usize> = Vec::new();
    let mut main = httpd.main.clone();
    main.mounts.rules.extend(extra.rules.iter().cloned());
    let mut listen = httpd.listen.clone();
    // Of `[::]`, which a `Listen` without address is, `0.0.0.0` is a part.
    let both: Vec<u16> = listen
        .iter()
        .filter(|l| l.ip.is_none())
        .map(|l| l.port)
        .collect();
    listen.retain(|l| !(l.ip.is_some_and(|ip| ip.is_unspecified()) && both.contains(&l.port)));
    listen.dedup_by(|a, b| (a.ip, a.port) == (b.ip, b.port));
    for listen in &listen {
        let mut chosen: Vec<(usize, Option<IpAddr>)> = Vec::new();
        for (index, server) in httpd.hosts.iter().enumerate() {
            for address in &server.addresses {
                let Some(at) = at(address) else {
                    let place = server.place.as_ref().unwrap_or(&listen.place);
                    let reason = "names are not resolved: write the address";
                    report.left(place, format!("<VirtualHost {address}>"), reason);
                    continue;
                };
                let port = at.port.is_none_or(|port| port == listen.port);
                let ip = match (at.ip, listen.ip) {
                    (Some(own), Some(ip)) => own == ip || ip.is_unspecified(),
                    _ => true,
                };
                if port && ip && !chosen.iter().any(|(other, _)| *other == index) {
                    chosen.push((
                        index,
                        at.ip
                            .filter(|_| listen.ip.is_none_or(|ip| ip.is_unspecified())),
                    ));
                }
            }
        }
        used.extend(chosen.iter().map(|(index, _)| *index));
        let ips: Vec<IpAddr> = chosen.iter().filter_map(|(_, ip)| *ip).collect();
        let by_ip = !chosen.is_empty() && ips.len() == chosen.len();
        if by_ip {
            // Each address has its own hosts, and nobody else is served.
            let mut done: Vec<IpAddr> = Vec::new();
            for ip in &ips {
                if done.contains(ip) {
                    continue;
                }
                done.push(*ip);
                let servers = chosen.iter().filter(|(_, own)| own == &Some(*ip));
                let servers: Vec<&Server> =
                    servers.map(|(index, _)| &httpd.hosts[*index]).collect();
                let listen = Listen {
                    ip: Some(*ip),
                    ..listen.clone()
                };
                frontend(&listen, &servers, &main, targets, &mut names, root, report);
            }
            let reason = "only the addresses of virtual hosts are listened on: at others the main server answers there";
            report.note(&listen.place, format!("Listen {}", listen.port), reason);
            continue;
        }
        for (index, _) in chosen.iter().filter(|(_, ip)| ip.is_some()) {
            let server = &httpd.hosts[*index];
            let place = server.place.as_ref().unwrap_or(&listen.place);
            let reason = "beside hosts for every address, this one is known by its name alone";
            report.note(place, "<VirtualHost> of one address", reason);
        }
        let servers: Vec<&Server> = match chosen.is_empty() {
            true => vec![&main],
            false => chosen
                .iter()
                .map(|(index, _)| &httpd.hosts[*index])
                .collect(),
        };
        frontend(listen, &servers, &main, targets, &mut names, root, report);
    }
    for (index, server) in httpd.hosts.iter().enumerate() {
        if let (false, Some(place)) = (used.contains(&index), &server.place) {
            let what = format!("<VirtualHost {}>", server.addresses.join(" "));
            report.left(place, what, "no `Listen` is for it");
        }
    }
    if listen.is_empty()
        && let Some(place) = httpd
            .main
            .first
            .as_ref()
            .or(httpd.hosts.first().and_then(|h| h.place.as_ref()))
    {
        report.left(
            place,
            "Listen",
            "there is none: nothing is known of where it listens",
        );
    }
}

fn frontend(
    listen: &Listen,
    servers: &[&Server],
    main: &Server,
    targets: &Targets,
    names: &mut Names,
    root: &mut Table,
    report: &mut Report,
) {
    let first = servers[0];
    let place = first.place.as_ref().unwrap_or(&listen.place);
    let mut table = Table::one_of("frontend", place);
    let name = match first.names.first() {
        // Two hosts of one name listen on several ports.
        Some((name, _)) => name.clone(),
        None => format!("port-{}", listen.port),
    };
    table
        .set_own("name", names.unique(&name))
        .set_own("mode", "http");
    let ip = listen.ip.unwrap_or(std::net::Ipv6Addr::UNSPECIFIED.into());
    table.set(
        "address",
        names::listen(Some(ip), listen.port),
        &listen.place,
    );
    let secure: Vec<&&Server> = servers.iter().filter(|server| server.tls.on).collect();
    if let Some(first) = secure.first() {
        for server in servers.iter().filter(|server| !server.tls.on) {
            let place = server.place.as_ref().unwrap_or(&listen.place);
            let reason = "another host of this port speaks TLS: all of them do";
            report.note(place, "SSLEngine off", reason);
        }
        host::tls(&mut table, first, &secure, report);
    } else if let (true, Some(place)) = (
        servers.iter().all(|server| server.to_https().is_some()),
        first.to_https(),
    ) {
        table.set("redirect_https", 443, place);
        root.push(table);
        return;
    }
    host::limits(&mut table, first);
    let mut known: Vec<String> = Vec::new();
    for (index, server) in servers.iter().enumerate() {
        let mut hosts: Vec<(String, Place)> = Vec::new();
        for (host, place) in &server.names {
            let covered = known.contains(host);
            match covered {
                true => report.left(
                    place,
                    host,
                    "an earlier virtual host of this address has this name",
                ),
                false if !hosts.iter().any(|(own, _)| own == host) => {
                    hosts.push((host.clone(), place.clone()))
                }
                false => {}
            }
        }
        known.extend(hosts.iter().map(|(host, _)| host.clone()));
        let place = server.place.as_ref().unwrap_or(&listen.place);
        let mut mounts = Mounts::default();
        mounts.rules.clone_from(&server.mounts.rules);
        if server.place.is_some() && (server.copy || main.copy_all) {
            for rule in &main.mounts.rules {
                let own = mounts
                    .rules
                    .iter()
                    .any(|r| r.pattern == rule.pattern && r.excluded == rule.excluded);
                if !own {
                    mounts.rules.push(rule.clone());
                }
            }
        }
        let (tables, excluded) = workers::mounts(&mounts, targets, report);
        // Before the mounts of workers, of which one may be for everything.
        let mut all = host::mounts(server, &tables, report);
        all.extend(tables);
        if index == 0 {
            // The first one also answers for names that nobody has. Its own names need a site
            // where another host's wildcard would take them.
            let taken = servers[1..]
                .iter()
                .flat_map(|other| &other.names)
                .any(|(wild, _)| {
                    let suffix = wild.strip_prefix('*');
                    suffix
                        .is_some_and(|suffix| hosts.iter().any(|(host, _)| host.ends_with(suffix)))
                });
            if taken {
                site(&mut table, &hosts, place, &all, &excluded, server);
            }
            hosts.clear();
        } else if hosts.is_empty() {
            let reason =
                "it has no name of its own: the first virtual host of this address answers";
            report.left(
                place,
                format!("<VirtualHost {}>", server.addresses.join(" ")),
                reason,
            );
            continue;
        }
        site(&mut table, &hosts, place, &all, &excluded, server);
    }
    root.push(table);
}

fn site(
    frontend: &mut Table,
    hosts: &[(String, Place)],
    place: &Place,
    mounts: &[Table],
    excluded: &[Table],
    server: &Server,
) {
    sites::add(frontend, hosts, place, mounts.to_vec(), |site| {
        for exclusion in excluded {
            site.push(exclusion.clone());
        }
        host::documents(site, server);
    });
}
