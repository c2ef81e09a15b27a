use std::time::Duration;

use super::*;
use crate::admin::protocol::NodeStatus;
use crate::config;
use crate::proxy::stats::HttpStatus;

const CONFIG: &str = r#"
[[frontend]]
name = "www"
mode = "http"
address = "127.0.0.1:80"
[[frontend.site]]
pool = "app"
[[frontend.site.mount]]
pattern = ["/a", "/a/*"]
pool = "app"
[[pool]]
name = "app"
[pool.sticky]
type = "route"
force = true
[[pool.backend]]
name = "s1"
address = "10.0.0.1:8009"
weight = 3
[[pool.backend]]
name = "s2"
address = "10.0.0.2:8009"
domain = "d"
redirect = "s1"
"#;

fn shown(query: &str) -> String {
    let config = config::parse("t", CONFIG).unwrap();
    let backend = |name: &str, health, activation, ejected_ms| HttpBackendStatus {
        name: name.into(),
        route: format!("r<{name}>"),
        health,
        activation,
        ejected_ms,
        requests: 7,
        in_flight: 2,
        connect_failed: 1,
        broken: 2,
        timed_out: 3,
        client_aborted: 4,
        ..HttpBackendStatus::default()
    };
    let status = Status {
        node: NodeStatus {
            uptime_ms: 60_500,
            ..NodeStatus::default()
        },
        http: Some(Box::new(HttpStatus {
            pools: vec![HttpPoolStatus {
                name: "app".into(),
                backends: vec![
                    backend("s1", Health::Up, Activation::Active, None),
                    backend("s2", Health::Up, Activation::Drain, Some(1_500)),
                ],
                ..HttpPoolStatus::default()
            }],
            ..HttpStatus::default()
        })),
        ..Status::default()
    };
    let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let view = list(&status, &config, query, now);
    assert_eq!(view.status, 200);
    view.text
}

#[test]
fn properties_have_mod_jks_names() {
    let text = shown("cmd=list&mime=prop");
    let expected = format!(
        "worker.time_unix=1700000000
worker.web_server=balancer/{v}
worker.jk_version=balancer/{v}
worker.lb_count=1
worker.list=app
worker.app.type=lb
worker.app.sticky_session=True
worker.app.sticky_session_force=True
worker.app.retries=3
worker.app.recover_time=5
worker.app.method=Request
worker.app.member_count=2
worker.app.good=1
worker.app.degraded=0
worker.app.bad=1
worker.app.busy=4
worker.app.map_count=3
worker.app.last_reset_at=1699999940
worker.app.last_reset_ago=60
worker.app.balance_workers=s1
worker.s1.type=http
worker.s1.host=10.0.0.1
worker.s1.port=8009
worker.s1.address=10.0.0.1:8009
worker.s1.busy_limit=0
worker.s1.activation=ACT
worker.s1.lbfactor=3
worker.s1.route=r<s1>
worker.s1.redirect=
worker.s1.domain=
worker.s1.distance=0
worker.s1.state=OK
worker.s1.elected=7
worker.s1.errors=6
worker.s1.client_errors=4
worker.s1.reply_timeouts=3
worker.s1.busy=2
worker.s1.time_to_recover_min=0
worker.s1.time_to_recover_max=0
worker.app.balance_workers=s2
",
        v = env!("CARGO_PKG_VERSION")
    );
    assert!(text.starts_with(&expected), "{text}");
    for line in [
        "worker.s2.activation=DIS",
        "worker.s2.state=ERR",
        "worker.s2.redirect=s1",
        "worker.s2.domain=d",
        "worker.s2.time_to_recover_max=2",
    ] {
        assert!(text.contains(&format!("\n{line}\n")), "{line} in {text}");
    }
    assert!(
        text.ends_with("worker.result.type=OK\nworker.result.message=Action finished\n"),
        "{text}"
    );
}

#[test]
fn other_forms_say_the_same() {
    let text = shown("mime=txt");
    assert!(
        text.contains(
            "Balancer Workers: count=1\nBalancer Worker: name=app type=lb sticky_session=True"
        ),
        "{text}"
    );
    assert!(
        text.contains("\nMember: name=s1 type=http host=10.0.0.1 port=8009"),
        "{text}"
    );
    assert!(text.contains(" route=\"r<s1>\""), "{text}");
    let text = shown("mime=xml");
    assert!(text.starts_with("<?xml version=\"1.0\""), "{text}");
    assert!(
        text.contains("<jk:balancers\n  count=\"1\"\n>\n  <jk:balancer\n    name=\"app\"\n"),
        "{text}"
    );
    assert!(text.contains("route=\"r&lt;s1&gt;\"\n"), "{text}");
    assert!(text.ends_with("</jk:balancers>\n  <jk:result\n    type=\"OK\"\n    message=\"Action finished\"\n  />\n</jk:status>\n"), "{text}");
    assert!(shown("").starts_with("<!DOCTYPE html>"));
    assert!(shown("cmd=show&w=other&mime=prop").contains("worker.lb_count=0\n"));
    assert!(shown("cmd=show&w=app&mime=prop").contains("worker.lb_count=1\n"));
}

#[test]
fn nothing_is_changed() {
    for query in [
        "cmd=update&w=app&sw=s1&vwa=1",
        "cmd=reset",
        "cmd=edit&w=app",
        "cmd=recover",
        "cmd=dump",
        "cmd=x",
    ] {
        let view = refused(query).unwrap();
        assert_eq!(view.status, 403, "{query}");
        assert!(view.text.contains("balancer drain"), "{query}");
    }
    for query in [
        "",
        "cmd=list&mime=xml",
        "cmd=show&w=a",
        "cmd=version",
        "mime=prop",
    ] {
        assert_eq!(refused(query), None, "{query}");
    }
}
