//! The article that this balancer stands in for, whole: a balancer in the kernel, two hosts
//! with an agent and a Tomcat of two services each, sessions replicated by Tomcat, and
//! configurations imported from the article's files. The last act of the demonstration plays
//! on the same site.

use balancer_tests::http::article::paths::PATHS;
use balancer_tests::http::article::visit::Session;
use balancer_tests::http::article::{ADMIN, Article, HOSTS, Service, USER};

/// Everything needs the same two Tomcats, which take long to start: one test, in this order.
#[test]
fn the_whole_article() {
    let mut site = Article::start();
    paths_lead_where_they_are_configured_to(&site);
    services_have_sessions_of_their_own(&site);
    a_drained_tomcat_keeps_its_sessions_and_gets_no_new_ones(&site);
    a_session_outlives_its_tomcat(&mut site);
}

#[track_caller]
fn login(site: &Article, service: Service, name: &str) -> Session {
    site.login(service, name).unwrap()
}

/// Who a request is from, as the application sees it, and the Tomcat that says so.
#[track_caller]
fn ask(site: &Article, service: Service, path: &str, cookie: &str) -> (String, String) {
    let visit = site.visit(service, path, Some(cookie)).unwrap();
    (visit.name, visit.node)
}

#[track_caller]
fn replicated_login(site: &Article, service: Service, name: &str, at: Option<&str>) -> Session {
    let (session, tries) = site.replicated_login(service, name, at).unwrap();
    println!("{name}: the other Tomcat knows one of {tries}");
    session
}

fn paths_lead_where_they_are_configured_to(site: &Article) {
    let wrong: Vec<String> = [USER, ADMIN]
        .iter()
        .flat_map(|&service| PATHS.map(|(path, to)| site.follow(service, path, to)))
        .filter_map(Result::err)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn services_have_sessions_of_their_own(site: &Article) {
    for (here, there) in [(ADMIN, USER), (USER, ADMIN)] {
        let session = replicated_login(site, here, "alice", None);
        assert!(session.node.starts_with(here.name));
        // A browser sends it to both: cookies know no ports. The other service may know its
        // Tomcat's name or not.
        for suffix in ["", ".admin1", ".admin2", ".user1", ".user2"] {
            let cookie = format!("{}{suffix}", session.id());
            let (name, node) = ask(site, there, "/", &cookie);
            assert_eq!(name, "nobody", "{cookie} at {node}");
            assert!(node.starts_with(there.name), "{cookie} at {node}");
        }
        // Nor has replication carried it there, as it has to the other Tomcat of its service.
        for host in 1..=HOSTS {
            let node = format!("{}{host}", there.name);
            let known = site.known(there, &node, &session.cookie).unwrap();
            assert_eq!(known, None, "{node}");
        }
        let (name, _) = ask(site, here, "/", &session.cookie);
        assert_eq!(name, "alice");
    }
}

fn a_drained_tomcat_keeps_its_sessions_and_gets_no_new_ones(site: &Article) {
    let old = ["bob0", "bob1"].map(|name| (name, site.login_at(USER, name, "user1").unwrap()));
    for agent in &site.agents {
        agent.order(&["drain", "user/user1"]);
    }
    for i in 0..20 {
        let session = login(site, USER, &format!("carol{i}"));
        assert_eq!(session.node, "user2", "a new session on a drained Tomcat");
    }
    for (name, session) in &old {
        for _ in 0..3 {
            let seen = ask(site, USER, "/", &session.cookie);
            assert_eq!(seen, ((*name).to_owned(), "user1".to_owned()));
        }
    }
    // They end, and those who had them are new.
    for (name, session) in &old {
        let seen = ask(site, USER, "/logout", &session.cookie);
        assert_eq!(seen, ("nobody".to_owned(), "user1".to_owned()));
        assert_eq!(login(site, USER, name).node, "user2");
    }
    for agent in &site.agents {
        agent.order(&["activate", "user/user1"]);
    }
    // New sessions begin there again.
    site.login_at(USER, "dave", "user1").unwrap();
}

fn a_session_outlives_its_tomcat(site: &mut Article) {
    // Both services of a host die with its Tomcat.
    let admin = replicated_login(site, ADMIN, "erin", None);
    let host = usize::from(admin.node == "admin2");
    let node = format!("user{}", host + 1);
    let user = replicated_login(site, USER, "frank", Some(&node));

    let mut tomcat = site.tomcats[host].take().expect("a Tomcat");
    let ((), asked) = site.among_others(USER, |others| {
        others.go_on(20).unwrap();
        tomcat.kill9();
        for (service, session, who) in [(ADMIN, &admin, "erin"), (USER, &user, "frank")] {
            let survivor = format!("{}{}", service.name, HOSTS - host);
            let visit = site.visit(service, "/", Some(&session.cookie)).unwrap();
            assert_eq!((&*visit.name, &*visit.node), (who, &*survivor));
            let now = format!("{}.{survivor}", session.id());
            let told = visit.told.as_ref();
            assert_eq!(told, Some(&now), "the cookie's suffix is the survivor's");
            // And it stays there.
            let again = ask(site, service, "/", &now);
            assert_eq!(again, (who.to_owned(), survivor));
        }
        others.go_on(20).unwrap();
    });
    let asked = asked.expect("no request of others fails, but for one whose response had begun");
    println!("{asked} requests of others answered meanwhile");
}
