//! The three files of the article that this balancer has to be able to replace.

use std::path::Path;

use balancer_agent::import::{self, Imported, Options};
use balancer_agent::model::http::{BackendProtocol, HttpBalance, Sticky, StickyRoute};
use balancer_agent::model::{CheckKind, Config};

use crate::support::{Made, sites};

const EXCLUDED: &str =
    "!/images/* (NAME), !/js/* (NAME), !/css/* (NAME), !/externlib/* (NAME), !/sample/* (NAME)";

fn made(imported: Imported) -> Made {
    Made::new(imported, Path::new("/nowhere"))
}

#[test]
fn workers_and_httpd_become_two_services() {
    let folder = Path::new("tests/import/article");
    let imported = import::workers(
        &folder.join("workers.properties"),
        None,
        Some(&folder.join("httpd.conf")),
        &Options::default(),
    );
    let made = made(imported.unwrap());
    for (name, port, frontend, ajp) in [
        ("user", 80, "mago3d-user", 8029),
        ("admin", 9090, "mago3d-admin", 8019),
    ] {
        let front = made.frontend(frontend);
        assert_eq!(front.address.port(), port);
        assert!(front.address.ip().is_unspecified());
        let excluded = EXCLUDED.replace("NAME", name);
        let expected = format!("any: /* -> {name}, {excluded}, else files /var/www/{frontend}");
        assert_eq!(sites(front), [expected]);
        let pool = made.pool(name);
        assert_eq!(pool.http.protocol, BackendProtocol::Ajp);
        assert_eq!(
            pool.http.sticky,
            Some(Sticky::Route(StickyRoute::default()))
        );
        assert_eq!(pool.http.balance, HttpBalance::RoundRobin);
        let backends: Vec<String> = pool
            .backends
            .iter()
            .map(|b| format!("{} {} {} {}", b.name, b.address, b.weight, b.http.route))
            .collect();
        assert_eq!(
            backends,
            [
                format!("{name}1 172.18.0.12:{ajp} 1 {name}1"),
                format!("{name}2 172.18.0.13:{ajp} 1 {name}2"),
            ]
        );
    }
    let Config {
        http, frontends, ..
    } = &made.config;
    assert_eq!((http.frontends.len(), frontends.len()), (2, 0));
    // All of it is carried over but the logs of modules that are not there.
    let left: Vec<&str> = made
        .left
        .iter()
        .map(|line| line.split(": ").nth(1).unwrap())
        .collect();
    assert_eq!(
        left,
        [
            "LoadModule jk_module modules/mod_jk.so",
            "JkShmFile run/mod_jk.shm",
            "JkLogFile logs/mod_jk.log",
            "JkLogLevel info",
            "JkLogStampFormat [%y %m %d %H:%M:%S]",
        ]
    );
}

#[test]
fn haproxy_becomes_two_frontends() {
    let imported = import::haproxy(
        Path::new("tests/import/article/haproxy.cfg"),
        &Options::default(),
    );
    let made = made(imported.unwrap());
    for (name, port) in [("user", 80), ("admin", 9090)] {
        let front = made.frontend(&format!("mago3d-{name}-front"));
        assert_eq!(front.address.to_string(), format!("0.0.0.0:{port}"));
        assert_eq!(
            sites(front),
            [format!("any: /haproxy -> HaproxyCsv, /* -> mago3d-{name}")]
        );
        let pool = made.pool(&format!("mago3d-{name}"));
        assert_eq!(pool.http.balance, HttpBalance::RoundRobin);
        assert_eq!(
            (pool.check.kind.clone(), pool.check.fall, pool.check.rise),
            (CheckKind::Tcp, 3, 2)
        );
        let backends: Vec<String> = pool
            .backends
            .iter()
            .map(|b| format!("{} {}", b.name, b.address))
            .collect();
        assert_eq!(
            backends,
            [
                format!("{name}-server-1-host 172.18.0.12:{port}"),
                format!("{name}-server-2-host 172.18.0.13:{port}"),
            ]
        );
    }
}
