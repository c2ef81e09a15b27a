//! HAProxy's statistics as CSV (management guide, 9.1): the columns of 2.6, in their order. A
//! column that nothing here is counted for is empty.

use std::collections::BTreeMap;

use crate::admin::protocol::{BackendStatus, FrontendStatus, Status};
use crate::model::http::{HttpBalance, Sticky};
use crate::model::{Activation, CheckKind, Config, Health, Pool};
use crate::proxy::stats::{HttpBackendStatus, HttpFrontendStatus, HttpPoolStatus};

/// The columns. Each line ends in a comma, as there.
const COLUMNS: &str = "pxname,svname,qcur,qmax,scur,smax,slim,stot,bin,bout,dreq,dresp,ereq,econ,eresp,wretr,wredis,status,weight,act,bck,chkfail,chkdown,lastchg,downtime,qlimit,pid,iid,sid,throttle,lbtot,tracked,type,rate,rate_lim,rate_max,check_status,check_code,check_duration,hrsp_1xx,hrsp_2xx,hrsp_3xx,hrsp_4xx,hrsp_5xx,hrsp_other,hanafail,req_rate,req_rate_max,req_tot,cli_abrt,srv_abrt,comp_in,comp_out,comp_byp,comp_rsp,lastsess,last_chk,last_agt,qtime,ctime,rtime,ttime,agent_status,agent_code,agent_duration,check_desc,agent_desc,check_rise,check_fall,check_health,agent_rise,agent_fall,agent_health,addr,cookie,mode,algo,conn_rate,conn_rate_max,conn_tot,intercepted,dcon,dses,wrew,connect,reuse,cache_lookups,cache_hits,srv_icur,src_ilim,qtime_max,ctime_max,rtime_max,ttime_max,eint,idle_conn_cur,safe_conn_cur,used_conn_cur,need_conn_est,uweight,agg_server_status,agg_server_check_status,agg_check_status,-,ssl_sess,ssl_reused_sess,ssl_failed_handshake,h2_headers_rcvd,h2_data_rcvd,h2_settings_rcvd,h2_rst_stream_rcvd,h2_goaway_rcvd,h2_detected_conn_protocol_errors,h2_detected_strm_protocol_errors,h2_rst_stream_resp,h2_goaway_resp,h2_open_connections,h2_backend_open_streams,h2_total_connections,h2_backend_total_streams,h1_open_connections,h1_open_streams,h1_total_connections,h1_total_streams,h1_bytes_in,h1_bytes_out,h1_spliced_bytes_in,h1_spliced_bytes_out";

/// A line: the columns that have something.
#[derive(Default)]
struct Row(BTreeMap<&'static str, String>);

impl Row {
    fn set(&mut self, column: &'static str, value: impl ToString) -> &mut Self {
        self.0.insert(column, value.to_string());
        self
    }

    fn print(&self, out: &mut String) {
        for column in COLUMNS.split(',') {
            match self.0.get(column) {
                Some(value) => field(value, out),
                // It stands between HAProxy's own columns and those of its modules.
                None if column == "-" => out.push('-'),
                None => {}
            }
            out.push(',');
        }
        out.push('\n');
    }
}

/// A field; quoted where it would not end where it ends.
fn field(value: &str, out: &mut String) {
    if !value.contains(['"', ',', '\n', '\r']) {
        out.push_str(value);
        return;
    }
    out.push('"');
    for c in value.chars() {
        match c {
            '"' => out.push_str("\"\""),
            '\n' | '\r' => out.push(' '),
            c => out.push(c),
        }
    }
    out.push('"');
}

/// The whole table: frontends in the order of the file, then each pool's servers and itself.
pub fn csv(status: &Status, config: &Config) -> String {
    let mut out = format!("# {COLUMNS},\n");
    let http = status.http.as_deref();
    let mut id = 0;
    for frontend in http.iter().flat_map(|http| &http.frontends) {
        id += 1;
        http_frontend(frontend).set("iid", id).print(&mut out);
    }
    for frontend in &status.frontends {
        id += 1;
        steered_frontend(frontend).set("iid", id).print(&mut out);
    }
    for pool in &config.pools {
        id += 1;
        let steered = status.pools.iter().find(|p| *p.name == *pool.name);
        let requests = http.and_then(|http| http.pools.iter().find(|p| *p.name == *pool.name));
        let mut total = Total::default();
        for (sid, backend) in pool.backends.iter().enumerate() {
            let steered =
                steered.and_then(|p| p.backends.iter().find(|b| *b.name == *backend.name));
            let requests =
                requests.and_then(|p| p.backends.iter().find(|b| *b.name == *backend.name));
            let backup = backend.http.priority > 0;
            let mut row = server(pool, &backend.name, backup, steered, requests, &mut total);
            row.set("iid", id).set("sid", sid + 1).print(&mut out);
        }
        total.row(pool, requests).set("iid", id).print(&mut out);
    }
    out
}

fn begin(proxy: &str, service: &str, kind: u8, mode: &'static str) -> Row {
    let mut row = Row::default();
    row.set("pxname", proxy).set("svname", service);
    row.set("type", kind).set("mode", mode).set("pid", 1);
    row
}

fn http_frontend(frontend: &HttpFrontendStatus) -> Row {
    let mut row = begin(&frontend.name, "FRONTEND", 0, "http");
    let caused = |word: &str| frontend.causes.get(word).copied().unwrap_or(0);
    let handshakes = frontend.refused.get("tls-handshake").copied().unwrap_or(0);
    let turned_away: u64 = frontend.refused.values().sum::<u64>() - handshakes;
    row.set("status", "OPEN")
        .set("scur", frontend.connections)
        .set("smax", frontend.connections_most)
        .set("slim", frontend.connections_limit)
        .set("stot", frontend.connections_total)
        .set("bin", frontend.bytes_in)
        .set("bout", frontend.bytes_out)
        .set("dreq", caused("refused"))
        .set("ereq", caused("client-timeout") + caused("client-aborted"))
        .set("cli_abrt", caused("client-aborted"))
        .set("req_tot", frontend.requests)
        .set("conn_tot", frontend.connections_total)
        .set("dcon", turned_away)
        .set("ssl_sess", frontend.tls_handshakes)
        .set("ssl_reused_sess", frontend.tls_resumed)
        .set("ssl_failed_handshake", handshakes)
        .set("h2_open_connections", frontend.http2);
    statuses(&mut row, &frontend.statuses);
    row
}

fn steered_frontend(frontend: &FrontendStatus) -> Row {
    let mut row = begin(&frontend.name, "FRONTEND", 0, "tcp");
    row.set("status", "OPEN")
        .set("scur", frontend.flows + frontend.half_open)
        .set("stot", frontend.connections_total)
        .set("conn_tot", frontend.connections_total)
        .set("bin", frontend.traffic.bytes_in)
        .set("bout", frontend.traffic.bytes_out)
        .set("dcon", frontend.refused);
    row
}

fn statuses(row: &mut Row, statuses: &BTreeMap<String, u64>) {
    let of = |class: &str| statuses.get(class).copied().unwrap_or(0);
    row.set("hrsp_1xx", of("1xx"))
        .set("hrsp_2xx", of("2xx"))
        .set("hrsp_3xx", of("3xx"))
        .set("hrsp_4xx", of("4xx"))
        .set("hrsp_5xx", of("5xx"))
        .set("hrsp_other", of("none"));
}

/// Sums over a pool's servers.
#[derive(Default)]
struct Total {
    current: u64,
    sessions: u64,
    bytes: (u64, u64),
    steered: bool,
    connect: u64,
    response: u64,
    weight: u64,
    active: u64,
    backup: u64,
    failed: u64,
    aborted: u64,
    broken: u64,
    statuses: BTreeMap<String, u64>,
    since: Option<u64>,
}

fn server(
    pool: &Pool,
    name: &str,
    backup: bool,
    steered: Option<&BackendStatus>,
    requests: Option<&HttpBackendStatus>,
    total: &mut Total,
) -> Row {
    let mut row = begin(&pool.name, name, 2, mode(requests.is_some()));
    let health = steered
        .map(|s| s.health)
        .or(requests.map(|r| r.health))
        .unwrap_or_default();
    let activation = steered
        .map(|s| s.activation)
        .or(requests.map(|r| r.activation))
        .unwrap_or_default();
    let unchecked = pool.check.kind == CheckKind::None;
    let status = match (activation, health, unchecked) {
        (Activation::Stopped, ..) => "MAINT",
        (_, Health::Down, _) => "DOWN",
        (Activation::Drain, ..) => "DRAIN",
        (_, _, true) => "no check",
        _ => "UP",
    };
    row.set("status", status);
    let usable = health == Health::Up && activation == Activation::Active;
    row.set("act", u8::from(!backup))
        .set("bck", u8::from(backup));
    let mut current = 0;
    let mut sessions = 0;
    if let Some(steered) = steered {
        current += u64::from(steered.flows + steered.half_open);
        sessions += steered.connections_total;
        row.set("weight", steered.weight)
            .set("uweight", steered.weight)
            .set("lastchg", steered.health_for_ms / 1_000)
            .set("addr", steered.address)
            .set("check_desc", &steered.health_reason);
        if let (Some(last), false) = (&steered.last_check, unchecked) {
            row.set("last_chk", last);
        }
        if !unchecked {
            row.set("chkfail", steered.checks_failed)
                .set("check_rise", pool.check.rise)
                .set("check_fall", pool.check.fall);
            total.failed += steered.checks_failed;
        }
        if steered.connections_total > 0 || steered.traffic.packets_in > 0 {
            row.set("bin", steered.traffic.bytes_in)
                .set("bout", steered.traffic.bytes_out);
            total.steered = true;
            total.bytes.0 += steered.traffic.bytes_in;
            total.bytes.1 += steered.traffic.bytes_out;
        }
        total.connect += steered.refused;
        total.since = Some(
            total
                .since
                .map_or(steered.health_for_ms, |s| s.min(steered.health_for_ms)),
        );
        if usable {
            total.weight += u64::from(steered.weight);
        }
    }
    let mut refused = steered.map_or(0, |s| s.refused);
    if let Some(requests) = requests {
        current += requests.in_flight;
        sessions += requests.requests;
        refused += requests.connect_failed;
        let response = requests.broken + requests.timed_out;
        row.set("eresp", response)
            .set("cli_abrt", requests.client_aborted)
            .set("srv_abrt", requests.broken)
            .set("wredis", requests.retries)
            .set("hanafail", requests.ejections)
            .set("req_tot", requests.requests);
        if let Some(limit) = requests.in_flight_limit {
            row.set("slim", limit);
        }
        if pool.http.sticky.is_some() {
            row.set("cookie", &requests.route);
        }
        statuses(&mut row, &requests.statuses);
        total.connect += requests.connect_failed;
        total.response += response;
        total.aborted += requests.client_aborted;
        total.broken += requests.broken;
        for (class, count) in &requests.statuses {
            *total.statuses.entry(class.clone()).or_default() += count;
        }
    }
    row.set("scur", current)
        .set("stot", sessions)
        .set("lbtot", sessions)
        .set("econ", refused);
    total.current += current;
    total.sessions += sessions;
    if usable {
        match backup {
            true => total.backup += 1,
            false => total.active += 1,
        }
    }
    row
}

impl Total {
    fn row(&self, pool: &Pool, requests: Option<&HttpPoolStatus>) -> Row {
        let mut row = begin(&pool.name, "BACKEND", 1, mode(requests.is_some()));
        let up = self.active + self.backup > 0;
        row.set("status", if up { "UP" } else { "DOWN" })
            .set("scur", self.current)
            .set("stot", self.sessions)
            .set("lbtot", self.sessions)
            .set("econ", self.connect)
            .set("weight", self.weight)
            .set("act", self.active)
            .set("bck", self.backup);
        if self.steered {
            row.set("bin", self.bytes.0).set("bout", self.bytes.1);
        }
        if pool.check.kind != CheckKind::None {
            row.set("chkfail", self.failed);
        }
        if let Some(since) = self.since {
            row.set("lastchg", since / 1_000);
        }
        if let Some(requests) = requests {
            row.set("qcur", requests.queue)
                .set("qmax", requests.queue_most)
                .set("qlimit", requests.queue_limit)
                .set("eresp", self.response)
                .set("wretr", requests.retries)
                .set("wredis", requests.rebound)
                .set("cli_abrt", self.aborted)
                .set("srv_abrt", self.broken)
                .set("req_tot", self.sessions);
            statuses(&mut row, &self.statuses);
            if let Some(name) = cookie(&pool.http.sticky) {
                row.set("cookie", name);
            }
            row.set("algo", algorithm(pool.http.balance));
        } else {
            row.set("algo", "roundrobin");
        }
        row
    }
}

fn mode(http: bool) -> &'static str {
    if http { "http" } else { "tcp" }
}

fn cookie(sticky: &Option<Sticky>) -> Option<&str> {
    match sticky {
        Some(Sticky::Cookie(cookie)) => Some(&cookie.name),
        Some(Sticky::Route(route)) => Some(&route.cookie),
        Some(Sticky::Learn(learn)) => Some(&learn.cookie),
        _ => None,
    }
}

/// In HAProxy's words.
fn algorithm(balance: HttpBalance) -> &'static str {
    match balance {
        HttpBalance::RoundRobin => "roundrobin",
        HttpBalance::LeastConnections => "leastconn",
        HttpBalance::PowerOfTwo => "random",
        HttpBalance::Source => "source",
    }
}

#[cfg(test)]
#[path = "haproxy_tests.rs"]
mod tests;
