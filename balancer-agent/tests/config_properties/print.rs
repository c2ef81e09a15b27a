//! A configuration as a file.

use std::fmt::Write as _;
use std::time::Duration;

use balancer_agent::model::http::BackendProtocol;
use balancer_agent::model::*;
use common::tables::Unavailable;

use super::print_http;
use super::steered::default_times;

/// The configuration as a file. Unless `explicit`, keys with a default value are
/// left out.
pub fn print(config: &Config, explicit: bool) -> String {
    let mut out = String::new();
    let Xdp {
        interfaces,
        mode,
        flows_ipv4,
        flows_ipv6,
        half_open,
        pin_dir,
    } = &config.xdp;
    let mode = format!("{mode:?}").to_lowercase();
    writeln!(out, "[xdp]\ninterfaces = {interfaces:?}").unwrap();
    let mut key = |name: &str, value: String, default: &str| {
        if explicit || value != default {
            writeln!(out, "{name} = {value}").unwrap();
        }
    };
    key("mode", quote(&mode), "\"auto\"");
    key("flows_ipv4", flows_ipv4.to_string(), "1000000");
    key("flows_ipv6", flows_ipv6.to_string(), "1000000");
    key("half_open", half_open.to_string(), "262144");
    if let Some(dir) = pin_dir {
        key("pin_dir", quote(dir.to_str().unwrap()), "");
    }
    let socket = config.admin.socket.to_str().unwrap();
    writeln!(out, "[admin]\nsocket = {}\n[timeouts]", quote(socket)).unwrap();
    let t = &config.timeouts;
    for (name, time) in [
        ("tcp_idle", t.tcp_idle),
        ("udp_idle", t.udp_idle),
        ("half_open", t.half_open),
        ("closed", t.closed),
        ("removed", t.removed),
    ] {
        writeln!(out, "{name} = {}", ms(time)).unwrap();
    }
    for f in &config.frontends {
        let (name, address, pool) = (&f.name, f.address, &f.pool);
        writeln!(
            out,
            "[[frontend]]\nname = \"{name}\"\naddress = \"{address}\""
        )
        .unwrap();
        writeln!(out, "pool = \"{pool}\"").unwrap();
        if explicit || f.protocol == Protocol::Udp {
            writeln!(out, "mode = \"xdp\"\nprotocol = \"{}\"", f.protocol).unwrap();
        }
    }
    print_http::http(&mut out, &config.http, explicit);
    for pool in &config.pools {
        print_pool(&mut out, config, pool, explicit);
    }
    out
}

fn print_pool(out: &mut String, config: &Config, pool: &Pool, explicit: bool) {
    let mut users = config.frontends.iter().filter(|f| f.pool == pool.name);
    let udp_only = users.clone().count() > 0 && users.all(|f| f.protocol == Protocol::Udp);
    let mut line = |text: String| writeln!(out, "{text}").unwrap();
    line(format!("[[pool]]\nname = \"{}\"", pool.name));
    if explicit {
        line("forward = \"nat\"".into());
    }
    if !pool.snat.is_empty() {
        let list: Vec<String> = pool.snat.iter().map(|ip| quote(&ip.to_string())).collect();
        line(format!("snat = [{}]", list.join(", ")));
        if explicit || pool.snat_ports != (10_000, 32_767) {
            line(format!(
                "snat_ports = \"{}-{}\"",
                pool.snat_ports.0, pool.snat_ports.1
            ));
        }
    }
    if explicit || pool.unavailable != Unavailable::Reset {
        let word = format!("{:?}", pool.unavailable).to_lowercase();
        line(format!("unavailable = \"{word}\""));
    }
    print_http::pool(out, &pool.http, explicit);
    let mut line = |text: String| writeln!(out, "{text}").unwrap();
    let check = &pool.check;
    let ajp = pool.http.protocol == BackendProtocol::Ajp && check.as_requests;
    line("[pool.check]".into());
    let (kind, default) = match &check.kind {
        CheckKind::None => ("none", udp_only),
        CheckKind::Tcp => ("tcp", !udp_only && !ajp),
        CheckKind::Http { .. } => ("http", false),
        CheckKind::Ajp => ("ajp", !udp_only && ajp),
    };
    if explicit || !default {
        line(format!("type = \"{kind}\""));
    }
    line(format!("interval = {}", ms(check.interval)));
    let times = (
        check.fast_interval.as_millis() as u64,
        check.timeout.as_millis() as u64,
    );
    if explicit || times != default_times(check.interval.as_millis() as u64) {
        line(format!("fast_interval = {}", ms(check.fast_interval)));
        line(format!("timeout = {}", ms(check.timeout)));
    }
    line(format!("fall = {}\nrise = {}", check.fall, check.rise));
    if let Some(port) = check.port {
        line(format!("port = {port}"));
    }
    // The default depends on who uses the pool.
    if explicit
        || (pool.http.tls.is_some() && !matches!(check.kind, CheckKind::None | CheckKind::Ajp))
    {
        line(format!("tls = {}", check.tls));
    }
    if let CheckKind::Http { path, host, expect } = &check.kind {
        if explicit || path != "/" {
            line(format!("path = {}", quote(path)));
        }
        if let Some(host) = host {
            line(format!("host = {}", quote(host)));
        }
        let list: Vec<String> = expect
            .iter()
            .map(|(first, last)| match first == last {
                true => first.to_string(),
                false => format!("\"{first}-{last}\""),
            })
            .collect();
        match &list[..] {
            [one] if !explicit => line(format!("expect = {one}")),
            _ => line(format!("expect = [{}]", list.join(", "))),
        }
    }
    line("[pool.passive]".into());
    if explicit || !pool.passive.refused {
        line(format!("refused = {}", pool.passive.refused));
    }
    line(match pool.passive.unanswered {
        Some(time) => format!("unanswered = {}", ms(time)),
        None => "unanswered = false".into(),
    });
    for b in &pool.backends {
        line(format!(
            "[[pool.backend]]\nname = \"{}\"\naddress = \"{}\"",
            b.name, b.address
        ));
        if explicit || b.weight != 1 {
            line(format!("weight = {}", b.weight));
        }
        if explicit || b.activation != Activation::Active {
            line(format!("activation = \"{}\"", b.activation));
        }
        line(print_http::backend(b, explicit));
    }
}

pub fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => write!(out, "\\u{:04X}", u32::from(c)).unwrap(),
            c => out.push(c),
        }
    }
    out + "\""
}

pub fn ms(duration: Duration) -> String {
    format!("\"{}ms\"", duration.as_millis())
}
