//! Attributes of workers: which a pool has once, and why some are not carried over.

/// Attributes of members that a pool has once.
pub const SHARED: [&str; 13] = [
    "socket_connect_timeout",
    "reply_timeout",
    "socket_timeout",
    "connection_pool_timeout",
    "cache_timeout",
    "connection_pool_size",
    "cachesize",
    "max_packet_size",
    "ping_timeout",
    "connect_timeout",
    "prepost_timeout",
    "ping_mode",
    "connection_ping_interval",
];

/// Why an attribute is not carried over.
pub fn reason(attribute: &str) -> Option<&'static str> {
    Some(match attribute {
        "maintain" => "there is no maintenance of weights: shares are exact at all times",
        "socket_keepalive" => {
            "kept connections are asked by CPING before they are used (`[pool.ping]`)"
        }
        "socket_buffer" | "lock" | "ld_path" | "connection_pool_minsize" | "cache_minsize" => {
            "not needed here"
        }
        "connection_acquire_timeout" => {
            "who waits for a backend with room is in the pool's queue: `[pool.queue] timeout`"
        }
        "recovery_options" => {
            "requests that a backend may have taken are only repeated when that is safe; `[pool.retries] non_idempotent = true` \
             repeats all, as mod_jk does by default"
        }
        "fail_on_status" => {
            "`[pool.retries] on_status` repeats requests, `[pool.observe] status = true` counts statuses from 500 on as failures"
        }
        "retry_interval" | "error_escalation_time" | "max_reply_timeouts" => {
            "`[pool.observe]` says when failures put a backend out"
        }
        "set_session_cookie" | "session_cookie_path" => {
            "the application sets its session cookie; `[pool.sticky] type = \"cookie\"` is one of the balancer's own"
        }
        "mount" => "write it as JkMount, or as a rule of uriworkermap.properties",
        "source" => "connections to backends come from the address that the route gives them",
        "secretkey" => "ajp14 has no counterpart: `secret` is that of AJP13",
        "css" | "ns" | "xmlns" | "doctype" | "prefix" | "good" | "bad" => {
            "the view of statistics has one form"
        }
        "read_only" => "the view of statistics never changes anything",
        "user" | "user_case_insensitive" => {
            "ACCESS IS NOT RESTRICTED BY USER: who may see the statistics is in their `allow`"
        }
        "retries" => "retries are the pool's: `[pool.retries] attempts`",
        "prefer_ipv6" => "backends have addresses",
        _ => return None,
    })
}
