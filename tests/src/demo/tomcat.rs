//! The last part of the demonstration: the site of the article that this balancer stands in
//! for, with real Tomcats. It is configured by importing the article's own files.
//!
//! What Tomcat itself does, such as replicating sessions, is as in the article too; what is
//! promised is what the balancer makes of it.

use std::time::Instant;

use super::show::{Show, milliseconds};
use crate::agent::{Agent, READY, backends};
use crate::http::article::paths::PATHS;
use crate::http::article::visit::{Session, Visit, other};
use crate::http::article::{ADMIN, Article, Import, Plan, STEPS, Service, USER};
use crate::process::{BOUND, came_true};

/// Visits of somebody who stays where they are.
const VISITS: u64 = 12;
/// New sessions while one of two Tomcats is drained: in turns, half of them would be there.
const NEWCOMERS: usize = 12;
/// Answers to others before and after the kill.
const OTHERS: usize = 20;
/// Longest line that is shown of what an import says.
const WIDTH: usize = 110;
/// Paths that are shown, of all that are asked for.
const SHOWN: [&str; 12] = [
    "/images/a.txt",
    "/images/none.txt",
    "/images",
    "/js/deep/b.txt",
    "/x/../images/a.txt",
    "/%69mages/a.txt",
    "/images/..",
    "/secret.txt",
    "/css/a.txt",
    "/Images/a.txt",
    "/",
    "/images%2Fa.txt",
];

/// Plays the acts of the article's site.
pub fn play(show: &mut Show) {
    let mut site = build(show);
    if let Err(why) = acts(&mut site, show) {
        show.say(&why);
        show.promise("the visitors get their answers", false, clipped(&why));
    }
}

/// An act that can't go on says why.
type Act<T = ()> = Result<T, String>;

fn acts(site: &mut Article, show: &mut Show) -> Act {
    let ada = log_in(site, show)?;
    two_services(site, show, &ada)?;
    paths(site, show);
    drain(site, show)?;
    kill_a_tomcat(site, show, ada)
}

fn build(show: &mut Show) -> Article {
    show.act("The article's configurations, imported");
    show.say(
        "HAProxy's is for the balancer, in TCP mode; mod_jk's and httpd's are for an agent on",
    );
    show.say("each host. Addresses and document roots are this lab's. What is not carried over:");
    let plan = Plan::new();
    for import in [&plan.front, &plan.back] {
        show.say(format!("$ {}", import.command));
        for line in &import.said {
            show.say(format!("    {}", clipped(line)));
        }
    }
    let (placed, said) = places(&[&plan.front, &plan.back]);
    show.promise(
        "all files are imported, and what is left over is told with its line",
        placed == said && said > 0,
        format!("{placed} of {said} remarks have their place"),
    );

    show.act("Two hosts, each with an agent and a Tomcat of two services");
    show.say("                              +-- host1 agent --+-- AJP --+-- Tomcat  user1 admin1");
    show.say("browsers --- balancer, XDP ---+                 |    X    |     | their own cluster");
    show.say("     :80 user, :9090 admin    +-- host2 agent --+-- AJP --+-- Tomcat  user2 admin2");
    show.say("Each agent knows both Tomcats. They speak AJP13 alone, and replicate sessions.");
    let steps = show.steps(STEPS);
    let site = plan.start(|step| steps.next(step));
    steps.finish();
    show.table(
        ["service", "browsers ask", "host1", "host2"],
        [USER, ADMIN].map(|service| {
            let at = |host: usize| {
                let node = format!("{}{}", service.name, host + 1);
                let seen = site.agents[host].backend(service.name, &node);
                let text = |key: &str| seen[key].as_str().unwrap_or("?").to_owned();
                format!("{node} {} {}", text("address"), text("health"))
            };
            [
                service.name.to_owned(),
                site.address(service).to_string(),
                at(0),
                at(1),
            ]
        }),
    );
    show.promise(
        "the balancer finds both agents up, and each agent all four services",
        site.agents.iter().chain([&site.balancer]).all(all_up),
        format!("the balancer's process is {}", site.balancer.id()),
    );
    site
}

fn all_up(agent: &Agent) -> bool {
    backends(&agent.status()).all(|backend| backend["health"] == "up")
}

fn clipped(line: &str) -> String {
    match line.char_indices().nth(WIDTH) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line.to_owned(),
    }
}

/// Remarks of imports that begin with a file and a line, and all of them.
fn places(imports: &[&Import]) -> (usize, usize) {
    let said: Vec<&String> = imports.iter().flat_map(|import| &import.said).collect();
    let placed = said.iter().filter(|line| {
        let line = line.strip_prefix("note: ").unwrap_or(line);
        let mut parts = line.splitn(3, ':');
        let file = parts.next().is_some_and(|file| file.contains('.'));
        let number = parts.next().is_some_and(|line| line.parse::<u32>().is_ok());
        file && number
    });
    (placed.count(), said.len())
}

/// A cookie as it is shown: whoever has all of one has the session.
fn masked(cookie: &str) -> String {
    match cookie.split_once('.') {
        Some((_, suffix)) => format!("********.{suffix}"),
        None => "********".to_owned(),
    }
}

fn log_in(site: &Article, show: &mut Show) -> Act<Session> {
    show.act("A login");
    show.say("ada logs in at `user`. The application's cookie ends in the name of its Tomcat,");
    show.say("by which either agent finds it.");
    let spinner = show.spinner("until the other Tomcat knows the session too");
    let (ada, tries) = site.replicated_login(USER, "ada", None)?;
    let before: Vec<u64> = site
        .agents
        .iter()
        .map(|agent| requests(agent, USER))
        .collect();
    let visits = visits(site, USER, &ada.cookie)?;
    let counts = || {
        let now = site.agents.iter().map(|agent| requests(agent, USER));
        let more = now.zip(&before).map(|(now, before)| now - before);
        more.collect::<Vec<_>>()
    };
    // A request is counted after its answer has gone out.
    let counted = came_true(BOUND, || counts().iter().sum::<u64>() >= VISITS);
    spinner.finish_and_clear();
    let by = counts();
    show.table(
        ["JSESSIONID", "Tomcat", "visits", "by host1", "by host2"],
        [[
            masked(&ada.cookie),
            ada.node.clone(),
            visits.len().to_string(),
            by[0].to_string(),
            by[1].to_string(),
        ]],
    );
    if tries > 1 {
        show.say(format!(
            "({tries} logins, until the other Tomcat knew one: their asynchronous cluster loses some)"
        ));
    }
    show.promise(
        "the cookie's suffix names the Tomcat that made the session",
        ada.cookie == format!("{}.{}", ada.id(), ada.node),
        masked(&ada.cookie),
    );
    let at_home = |visit: &&Visit| visit.name == "ada" && visit.node == ada.node;
    let stayed = visits.iter().filter(at_home).count();
    show.promise(
        "visits come by both agents, and find the session's Tomcat",
        stayed == visits.len() && counted && by.iter().all(|&count| count > 0),
        format!("{stayed} of {VISITS} at {}, logged in", ada.node),
    );
    Ok(ada)
}

fn visits(site: &Article, service: Service, cookie: &str) -> Act<Vec<Visit>> {
    let visits = (0..VISITS).map(|_| site.visit(service, "/", Some(cookie)));
    visits.collect()
}

/// Requests that an agent has answered at a service.
fn requests(agent: &Agent, service: Service) -> u64 {
    let status = agent.status();
    let frontends = status["http"]["frontends"].as_array().into_iter().flatten();
    let named = |name: &str| name.strip_prefix("mago3d-") == Some(service.name);
    frontends
        .filter(|frontend| frontend["name"].as_str().is_some_and(named))
        .filter_map(|frontend| frontend["requests"].as_u64())
        .sum()
}

fn two_services(site: &Article, show: &mut Show, ada: &Session) -> Act {
    show.act("Two services of the same Tomcats");
    show.say("grace logs in at `admin`. Browsers send cookies to both: they know no ports.");
    let grace = site.login(ADMIN, "grace")?;
    let mut rows = Vec::new();
    let mut right = 0;
    for (who, session, service) in [("grace", &grace, ADMIN), ("ada", ada, USER)] {
        for (asked, expected) in [(ADMIN, ADMIN == service), (USER, USER == service)] {
            let visit = site.visit(asked, "/", Some(&session.cookie))?;
            let as_expected = visit.name == if expected { who } else { "nobody" };
            right += usize::from(as_expected && visit.node.starts_with(asked.name));
            rows.push([
                format!("{who}'s, {}", masked(&session.cookie)),
                asked.name.to_owned(),
                visit.node,
                visit.name,
            ]);
        }
    }
    let asked = rows.len();
    show.table(["cookie", "service", "answered by", "logged in as"], rows);
    show.promise(
        "a login at one service is none at the other",
        right == asked,
        format!("{right} of {asked} answers as they should be"),
    );
    Ok(())
}

fn paths(site: &Article, show: &mut Show) {
    show.act("Files of the agents, and the rest for the application");
    show.say(
        "httpd.conf mounts /* and leaves out five folders; paths are decoded, normalised, and",
    );
    show.say("then compared. Some of the paths that are asked for:");
    let mut rows = Vec::new();
    let mut wrong = Vec::new();
    for service in [USER, ADMIN] {
        for (path, to) in PATHS {
            let followed = site.follow(service, path, to);
            if service == USER && SHOWN.contains(&path) {
                let seen = if followed.is_ok() {
                    "as it should"
                } else {
                    "WRONG"
                };
                rows.push([path.to_owned(), to.to_string(), seen.to_owned()]);
            }
            wrong.extend(followed.err());
        }
    }
    let all = PATHS.len() * 2;
    show.table(["path", "leads to", ""], rows);
    show.promise(
        "every path leads where httpd.conf says, in both services",
        wrong.is_empty(),
        match wrong.first() {
            None => format!("{all} of {all}"),
            Some(first) => format!("{} of {all} do not: {first}", wrong.len()),
        },
    );
}

fn drain(site: &Article, show: &mut Show) -> Act {
    const DRAINED: &str = "user1";
    show.act("A Tomcat is drained");
    show.say(format!(
        "`balancer drain user/{DRAINED}` at both agents: two people have sessions there, and"
    ));
    show.say(format!("{NEWCOMERS} more log in."));
    let old = ["bob", "carol"].map(|name| (name, site.login_at(USER, name, DRAINED)));
    for agent in &site.agents {
        agent.order(&["drain", &format!("user/{DRAINED}")]);
    }
    let logins = (0..NEWCOMERS).map(|i| site.login(USER, &format!("newcomer{i}")));
    let new: Vec<Session> = logins.collect::<Act<_>>()?;
    let there = new.iter().filter(|session| session.node == DRAINED).count();
    let (mut asked, mut stayed) = (0, 0);
    for (name, session) in old {
        let session = session?;
        for visit in visits(site, USER, &session.cookie)? {
            asked += 1;
            stayed += usize::from(visit.name == name && visit.node == DRAINED);
        }
    }
    for agent in &site.agents {
        agent.order(&["activate", &format!("user/{DRAINED}")]);
    }
    let back = site.login_at(USER, "dave", DRAINED);
    show.table(
        ["", "at user1", "at user2"],
        [
            [
                "new sessions".to_owned(),
                there.to_string(),
                (new.len() - there).to_string(),
            ],
            [
                "requests of old sessions".to_owned(),
                stayed.to_string(),
                (asked - stayed).to_string(),
            ],
        ],
    );
    show.promise(
        "no session begins on a drained Tomcat",
        there == 0,
        format!("{there} of {} there", new.len()),
    );
    show.promise(
        "those that it has stay, logged in",
        stayed == asked,
        format!("{stayed} of {asked} requests"),
    );
    show.promise(
        "activated, it gets new ones again",
        back.is_ok(),
        back.map_or_else(|why| why, |session| masked(&session.cookie)),
    );
    Ok(())
}

fn kill_a_tomcat(site: &mut Article, show: &mut Show, ada: Session) -> Act {
    let host = usize::from(ada.node == "user2");
    let admin = format!("admin{}", host + 1);
    show.act("A Tomcat dies");
    show.say(format!(
        "ada is at {}, linus at {admin}: both services of host{}, whose Tomcat gets `kill -9`",
        ada.node,
        host + 1
    ));
    show.say("while others ask, one request after the other.");
    let spinner = show.spinner("until the other Tomcat knows linus too");
    let (linus, _) = site.replicated_login(ADMIN, "linus", Some(&admin))?;
    let known = site.known(USER, &other(&ada.node), &ada.cookie)?;
    spinner.finish_and_clear();
    if known.as_deref() != Some("ada") {
        return Err(format!("the other Tomcat has forgotten ada: {known:?}"));
    }
    let mut tomcat = site.tomcats[host].take().ok_or("there is no Tomcat")?;
    let people = [(USER, "ada", &ada), (ADMIN, "linus", &linus)];
    let alive = &*site;
    let (moved, others) = alive.among_others(USER, |others| -> Act<_> {
        others.go_on(OTHERS)?;
        tomcat.kill9();
        let moved = people.map(|(service, name, session)| {
            let begin = Instant::now();
            let visit = alive.visit(service, "/", Some(&session.cookie))?;
            Ok((service, name, session, visit, begin.elapsed()))
        });
        let moved = moved.into_iter().collect::<Act<Vec<_>>>()?;
        others.go_on(OTHERS)?;
        Ok(moved)
    });
    let moved = moved?;
    show.table(
        ["", "cookie", "becomes", "answered by", "after"],
        moved.iter().map(|(_, name, session, visit, time)| {
            [
                (*name).to_owned(),
                masked(&session.cookie),
                visit.told.as_deref().map_or("-".to_owned(), masked),
                visit.node.clone(),
                milliseconds(Some(*time)),
            ]
        }),
    );
    let survived = moved
        .iter()
        .filter(|(_, name, session, visit, _)| {
            visit.name == *name && visit.node == other(&session.node)
        })
        .count();
    show.promise(
        "the next request is answered by the other Tomcat, still logged in",
        survived == moved.len(),
        format!("{survived} of {}", moved.len()),
    );
    let renamed = moved.iter().filter(|(_, _, session, visit, _)| {
        let now = format!("{}.{}", session.id(), other(&session.node));
        visit.told.as_ref() == Some(&now)
    });
    let renamed = renamed.count();
    show.promise(
        "the cookie keeps its id, and its suffix names the other Tomcat",
        renamed == moved.len(),
        format!("{renamed} of {}", moved.len()),
    );
    show.promise(
        "no request of others fails, but for one whose response had begun",
        others.is_ok(),
        others.map_or_else(|why| why, |asked| format!("{asked} answered meanwhile")),
    );
    come_back(site, show, host, &ada)
}

/// The Tomcat of a host is started again; somebody has gone to the other one.
fn come_back(site: &mut Article, show: &mut Show, host: usize, gone: &Session) -> Act {
    let steps = show.steps(2);
    steps.next(&format!("the Tomcat of host{} starts again", host + 1));
    site.restart_tomcat(host);
    steps.next("the agents find it");
    let back = came_true(READY, || site.agents.iter().all(all_up));
    steps.finish();
    let now = other(&gone.node);
    let cookie = format!("{}.{now}", gone.id());
    let seen = visits(site, USER, &cookie)?;
    let at_home = |visit: &&Visit| visit.name == "ada" && visit.node == now;
    let stayed = seen.iter().filter(at_home).count();
    let new = site.login_at(USER, "dave", &gone.node);
    show.promise(
        "started again, it gets new sessions, and those that went stay",
        back && stayed == seen.len() && new.is_ok(),
        match new {
            Ok(_) => format!("ada {stayed} of {} times at {now}", seen.len()),
            Err(why) => why,
        },
    );
    Ok(())
}
