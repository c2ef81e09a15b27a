//! Directives that nothing is made of, and why.

use super::lex::Line;

/// Directives of proxies that other parts look at.
const TAKEN: [&str; 22] = [
    "acl",
    "bind",
    "use_backend",
    "default_backend",
    "server",
    "balance",
    "cookie",
    "appsession",
    "mode",
    "monitor-uri",
    "redirect",
    "block",
    "default-server",
    "retries",
    "fullconn",
    "maxconn",
    "reqadd",
    "reqdel",
    "reqidel",
    "rspadd",
    "rspdel",
    "rspidel",
];

/// Why a line of a proxy is not carried over; `None` when it was looked at elsewhere.
pub fn of(line: &Line) -> Option<&'static str> {
    let word = line.word(0);
    if TAKEN.contains(&word) {
        return None;
    }
    Some(match word {
        "no" => return of_no(line),
        "timeout" => return timeout(line.word(1)),
        "clitimeout" | "contimeout" | "srvtimeout" => return None,
        "option" if line.word(1) == "forwardfor" && !line.word(2).is_empty() => {
            "X-Forwarded-For is always sent, under this name; who is believed is in `trusted_proxies`"
        }
        "option" => return option(line.word(1)),
        "stats" => return stats(line.word(1)),
        "http-request" | "http-response" | "http-after-response" => return rule(line),
        "stick-table" | "stick" | "http-check" | "errorfile" | "compression" | "retry-on" => {
            return None;
        }
        "log" | "log-format" | "log-format-sd" | "log-tag" | "unique-id-format"
        | "unique-id-header" | "capture" | "error-log-format" => {
            "the access log is a file: `[frontend.log]`; ids of requests are `request_id`"
        }
        "tcp-request" | "tcp-response" | "tcp-check" => {
            "there are no rules for connections: limits are `[frontend.limits]`"
        }
        "http-reuse" => {
            "connections to backends are always kept and shared, unless `send_proxy` is set"
        }
        "dispatch" | "server-template" | "source" | "use-server" => {
            "there is nothing like it: write each server as a `[[pool.backend]]`"
        }
        "rate-limit" => "`[frontend.limits] requests_per_source` limits each source",
        "description" | "id" | "guid" => "not needed here: comments can say it",
        "disabled" => return None,
        "enabled" => "everything is enabled that is in the file",
        "errorloc" | "errorloc302" | "errorloc303" | "errorfiles" | "force-be-switch"
        | "http-error" => "of error pages there is one, for 503: `[pool.maintenance]`",
        "persist" | "force-persist" | "ignore-persist" => {
            "a session stays with its backend while that is up and not stopped"
        }
        "hash-type" | "hash-balance-factor" => "`balance = \"source\"` is a rendezvous hash",
        "load-server-state-from-file" => "backends begin as their first checks say",
        "max-keep-alive-queue" | "backlog" | "grace" | "bind-process" | "transparent" => {
            "not needed here"
        }
        "email-alert" | "filter" | "declare" | "external-check" | "monitor" => {
            "there is nothing like it"
        }
        _ => "there is nothing like it",
    })
}

fn of_no(line: &Line) -> Option<&'static str> {
    match line.word(1) {
        // Switching off what is not there changes nothing.
        "option" => match line.word(2) {
            "redispatch" => {
                Some("redispatch is always on: `[pool.sticky] force` keeps sessions where they are")
            }
            "forwardfor" => Some("X-Forwarded-For is sent unless `x_forwarded = false`"),
            _ => None,
        },
        _ => None,
    }
}

fn timeout(name: &str) -> Option<&'static str> {
    match name {
        "client" | "server" | "connect" | "http-request" | "http-keep-alive" | "queue"
        | "tunnel" | "check" | "client-hs" => None,
        "client-fin" | "server-fin" => Some("half-closed connections have no time of their own"),
        "tarpit" => Some("nobody is kept waiting: such requests are answered at once"),
        _ => Some("there is nothing like it"),
    }
}

fn option(name: &str) -> Option<&'static str> {
    Some(match name {
        "httpchk" | "tcp-check" | "ssl-hello-chk" | "allbackups" => return None,
        "mysql-check" | "pgsql-check" | "redis-check" | "smtpchk" | "ldap-check"
        | "external-check" | "lb-agent-chk" | "spop-check" => {
            "a check opens a connection (`type = \"tcp\"`), or gets a page (`type = \"http\"`)"
        }
        // Always so, or needed for nothing.
        "forwardfor" | "redispatch" => return None,
        "httplog"
        | "tcplog"
        | "dontlognull"
        | "dontlog-normal"
        | "logasap"
        | "log-separate-errors"
        | "log-health-checks"
        | "httpslog" => "the access log is a file: `[frontend.log]`",
        "http-server-close"
        | "httpclose"
        | "forceclose"
        | "http-tunnel"
        | "http-keep-alive"
        | "http-pretend-keepalive"
        | "prefer-last-server" => {
            "connections are kept on both sides, each for its own time (`keep_alive`)"
        }
        "originalto" => "backends get X-Forwarded-Host and -Port",
        "http-buffer-request" => {
            "bodies are streamed; slow ones are limited by `body_idle` and `body_rate`"
        }
        "abortonclose" => "a request whose client has gone is given up, always",
        "accept-invalid-http-request"
        | "accept-invalid-http-response"
        | "accept-unsafe-violations-in-http-request" => {
            "what two servers could read differently is refused, always"
        }
        "http-use-htx"
        | "splice-auto"
        | "splice-request"
        | "splice-response"
        | "contstats"
        | "socket-stats"
        | "nolinger"
        | "clitcpka"
        | "srvtcpka"
        | "tcpka"
        | "tcp-smart-accept"
        | "tcp-smart-connect"
        | "idle-close-on-response"
        | "http-ignore-probes"
        | "http-no-delay"
        | "independent-streams"
        | "checkcache"
        | "transparent" => "not needed here",
        "persist" => "a session stays with its backend while that is up and not stopped",
        _ => "there is nothing like it",
    })
}

fn stats(name: &str) -> Option<&'static str> {
    Some(match name {
        "uri" | "enable" => return None,
        "auth" | "realm" | "scope" | "http-request" => {
            "the statistics have no passwords: networks that may see them are in their `allow`"
        }
        "admin" => "the statistics change nothing: `balancer drain`, `activate`, `stop`",
        "refresh" | "show-legends" | "show-node" | "show-desc" | "show-modules"
        | "hide-version" => "the page for people is `balancer status`",
        _ => "there is nothing like it: `[admin] socket` is what `balancer status` asks",
    })
}

fn rule(line: &Line) -> Option<&'static str> {
    match (line.word(0), line.word(1)) {
        // Looked at in frontends; of backends, see there.
        ("http-request", _) => None,
        (_, "set-header" | "add-header" | "del-header") => None,
        _ => Some("of responses, headers are set, added and removed"),
    }
}

/// Why an `http-request` rule is not carried over.
pub fn http_request(action: &str) -> &'static str {
    match action {
        "auth" => {
            "ACCESS IS NOT RESTRICTED HERE: there is no authentication, it is the application's"
        }
        "set-path" | "replace-path" | "set-uri" | "replace-uri" | "set-pathq" | "replace-pathq"
        | "set-query" => {
            "paths are changed by prefix: `rewrite = { strip_prefix = .., add_prefix = .. }`"
        }
        "allow" => "rules have no exceptions: what a mount takes is in its pattern",
        "track-sc0" | "track-sc1" | "track-sc2" | "sc-inc-gpc0" | "sc-inc-gpc1" => {
            "sources are limited by `[frontend.limits] requests_per_source` and `connections_per_source`"
        }
        "replace-header" | "replace-value" => "headers are set, added and removed as a whole",
        "set-var"
        | "unset-var"
        | "capture"
        | "lua"
        | "use-service"
        | "set-log-level"
        | "set-nice"
        | "set-priority-class"
        | "set-priority-offset"
        | "cache-use"
        | "normalize-uri"
        | "set-src"
        | "set-dst"
        | "set-mark"
        | "set-tos" => "there is nothing like it",
        "do-resolve" => "names are not resolved while it runs",
        "wait-for-body" => "bodies are streamed",
        "early-hint" => "103 is the backend's to give",
        "disable-l7-retry" => "`[pool.retries]` is for a whole pool",
        _ => "there is nothing like it",
    }
}

/// Why a line of `global` is not carried over.
pub fn global(word: &str) -> &'static str {
    match word {
        "log" | "log-send-hostname" | "log-tag" => {
            "its own log goes to standard error, which systemd keeps; access logs are `[frontend.log]`"
        }
        "daemon"
        | "pidfile"
        | "master-worker"
        | "nbproc"
        | "grace"
        | "hard-stop-after"
        | "mworker-max-reloads" => {
            "it runs in the foreground, under systemd; reloads keep connections; `[http] drain_timeout` ends them"
        }
        "user" | "group" | "uid" | "gid" | "chroot" | "unix-bind" | "setcap" => {
            "the service manager's: `User=` and the like"
        }
        "stats" => "`[admin] socket` is what `balancer status` asks",
        "nbthread" | "maxconn" | "crt-base" | "ca-base" | "ssl-default-bind-options" => "looked at",
        "ssl-default-bind-ciphers"
        | "ssl-default-bind-ciphersuites"
        | "ssl-default-server-ciphers"
        | "ssl-default-bind-curves"
        | "ssl-default-server-ciphersuites"
        | "ssl-default-server-options"
        | "ssl-dh-param-file"
        | "tune.ssl.default-dh-param" => {
            "TLS 1.2 and 1.3 with strong suites only, which are not chosen one by one"
        }
        "cpu-map" | "numa-cpu-mapping" | "thread-groups" => {
            "each thread stays on a core of its own (`[http] pin_threads`)"
        }
        "maxconnrate" | "maxsessrate" | "maxsslconn" | "maxsslrate" | "maxpipes" | "ulimit-n"
        | "maxcompcpuusage" | "maxcomprate" => {
            "limits are `[http] max_connections` and `[frontend.limits]`; open files are the service manager's (`LimitNOFILE=`)"
        }
        "lua-load"
        | "lua-load-per-thread"
        | "lua-prepend-path"
        | "insecure-fork-wanted"
        | "external-check" => "there are no scripts",
        "setenv" | "presetenv" | "resetenv" | "unsetenv" => {
            "variables are those of `balancer import` itself: set them when you call it"
        }
        "ssl-server-verify" => {
            "backends' certificates are verified unless `[pool.tls] verify = false`"
        }
        "node" | "description" | "localpeer" => "a node's name is `[cluster] name`",
        "spread-checks" | "max-spread-checks" => {
            "checks are spread over their interval by themselves"
        }
        _ => "not needed here",
    }
}
