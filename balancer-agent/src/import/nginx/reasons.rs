//! Directives that nothing is made of, and why.

use super::lex::Node;
use crate::import::Report;

/// Directives that other parts look at, at every level.
const TAKEN: [&str; 45] = [
    "listen",
    "server_name",
    "location",
    "server",
    "root",
    "alias",
    "index",
    "try_files",
    "return",
    "rewrite",
    "if",
    "proxy_pass",
    "proxy_set_header",
    "add_header",
    "expires",
    "gzip",
    "deny",
    "ssl_certificate",
    "ssl_certificate_key",
    "ssl_protocols",
    "ssl_client_certificate",
    "ssl_verify_client",
    "http2",
    "client_max_body_size",
    "client_header_timeout",
    "client_body_timeout",
    "keepalive_timeout",
    "send_timeout",
    "proxy_connect_timeout",
    "proxy_read_timeout",
    "proxy_next_upstream",
    "proxy_next_upstream_tries",
    "proxy_ssl_verify",
    "proxy_ssl_trusted_certificate",
    "proxy_ssl_name",
    "proxy_ssl_certificate",
    "proxy_ssl_certificate_key",
    "set_real_ip_from",
    "default_type",
    "upstream",
    "limit_except",
    "ssl",
    "proxy_protocol",
    "proxy_hide_header",
    "stub_status",
];

/// Reports a directive where nothing looks at it.
pub fn left(node: &Node, report: &mut Report) {
    if TAKEN.contains(&node.name.as_str()) {
        return;
    }
    report.left(&node.place, node.shown(), reason(&node.name));
}

/// Why.
fn reason(name: &str) -> &'static str {
    match name {
        "user"
        | "pid"
        | "daemon"
        | "worker_rlimit_nofile"
        | "worker_cpu_affinity"
        | "worker_priority"
        | "load_module"
        | "master_process"
        | "lock_file"
        | "env" => "the service manager's, or not needed here",
        "events" | "worker_connections" => {
            "connections need no setting: limits are `[http] max_connections` and `[frontend.limits]`"
        }
        "access_log" | "log_format" | "open_log_file_cache" | "log_not_found" => {
            "the access log is a file of each frontend: `[frontend.log]`"
        }
        "error_log" | "debug_connection" => {
            "the agent's own log goes to standard error, which systemd keeps"
        }
        "types"
        | "types_hash_max_size"
        | "types_hash_bucket_size"
        | "charset"
        | "override_charset" => "types of files are known by their names",
        "sendfile"
        | "tcp_nopush"
        | "tcp_nodelay"
        | "aio"
        | "directio"
        | "server_names_hash_bucket_size"
        | "server_names_hash_max_size"
        | "variables_hash_max_size"
        | "server_tokens"
        | "reset_timedout_connection"
        | "output_buffers"
        | "sendfile_max_chunk"
        | "proxy_headers_hash_max_size"
        | "proxy_headers_hash_bucket_size"
        | "map_hash_bucket_size"
        | "etag"
        | "if_modified_since"
        | "open_file_cache"
        | "open_file_cache_valid"
        | "open_file_cache_errors"
        | "open_file_cache_min_uses"
        | "msie_padding"
        | "ignore_invalid_headers"
        | "underscores_in_headers"
        | "absolute_redirect"
        | "port_in_redirect"
        | "server_name_in_redirect" => "not needed here",
        "gzip_types" | "gzip_min_length" | "gzip_comp_level" | "gzip_vary" | "gzip_proxied"
        | "gzip_disable" | "gzip_buffers" | "gzip_http_version" | "gzip_static" | "brotli"
        | "brotli_types" | "gunzip" | "brotli_comp_level" => {
            "`compress = true` takes text of 1 KiB and more; `file.br` and `file.gz` beside `file` are served anyway"
        }
        "ssl_ciphers"
        | "ssl_prefer_server_ciphers"
        | "ssl_session_cache"
        | "ssl_session_timeout"
        | "ssl_session_tickets"
        | "ssl_dhparam"
        | "ssl_ecdh_curve"
        | "ssl_stapling"
        | "ssl_stapling_verify"
        | "ssl_trusted_certificate"
        | "ssl_buffer_size"
        | "ssl_early_data"
        | "ssl_conf_command"
        | "ssl_session_ticket_key"
        | "ssl_verify_depth"
        | "ssl_crl"
        | "ssl_reject_handshake"
        | "ssl_password_file" => {
            "TLS 1.2 and 1.3 with strong suites only, which are not chosen one by one"
        }
        "proxy_buffering"
        | "proxy_buffers"
        | "proxy_buffer_size"
        | "proxy_busy_buffers_size"
        | "proxy_request_buffering"
        | "client_body_buffer_size"
        | "client_header_buffer_size"
        | "large_client_header_buffers"
        | "proxy_max_temp_file_size"
        | "client_body_temp_path"
        | "proxy_temp_path"
        | "proxy_temp_file_write_size"
        | "postpone_output"
        | "client_body_in_file_only" => {
            "bodies are streamed; heads are limited by `[frontend.limits]`"
        }
        "proxy_http_version"
        | "proxy_socket_keepalive"
        | "proxy_pass_request_headers"
        | "proxy_pass_request_body" => "backends are spoken to by HTTP/1.1 on kept connections",
        "proxy_send_timeout" | "proxy_next_upstream_timeout" => {
            "`[pool.timeouts] request` limits a whole request"
        }
        "proxy_redirect" => "redirects of backends are passed on as they are",
        "proxy_cookie_path" | "proxy_cookie_domain" | "proxy_cookie_flags" => {
            "cookies of applications are passed on as they are"
        }
        "proxy_cache"
        | "proxy_cache_path"
        | "proxy_cache_valid"
        | "proxy_cache_key"
        | "proxy_cache_bypass"
        | "proxy_no_cache"
        | "proxy_cache_use_stale"
        | "proxy_cache_lock"
        | "proxy_store"
        | "proxy_cache_revalidate"
        | "proxy_cache_min_uses"
        | "proxy_cache_background_update"
        | "proxy_ignore_headers" => "nothing is cached",
        "proxy_intercept_errors" | "error_page" | "recursive_error_pages" => {
            "of error pages there is one, while no backend is usable: `[pool.maintenance]`"
        }
        "proxy_ssl_server_name"
        | "proxy_ssl_session_reuse"
        | "proxy_ssl_protocols"
        | "proxy_ssl_ciphers"
        | "proxy_ssl_verify_depth" => "`[pool.tls]` always asks for `server_name`",
        "limit_req_zone"
        | "limit_req"
        | "limit_req_status"
        | "limit_req_log_level"
        | "limit_req_dry_run" => "sources are limited by `[frontend.limits] requests_per_source`",
        "limit_conn_zone" | "limit_conn" | "limit_conn_status" | "limit_conn_log_level" => {
            "sources are limited by `[frontend.limits] connections_per_source`"
        }
        "limit_rate" | "limit_rate_after" => "bytes per second are not limited",
        "map" | "geo" | "set" | "split_clients" | "perl_set" | "js_set" | "js_import" => {
            "there are no variables"
        }
        "fastcgi_pass"
        | "uwsgi_pass"
        | "scgi_pass"
        | "grpc_pass"
        | "memcached_pass"
        | "fastcgi_param"
        | "fastcgi_index"
        | "uwsgi_param"
        | "fastcgi_split_path_info"
        | "fastcgi_read_timeout" => "backends speak HTTP or AJP13",
        "auth_basic"
        | "auth_basic_user_file"
        | "auth_request"
        | "auth_jwt"
        | "auth_request_set" => {
            "ACCESS IS NOT RESTRICTED HERE: there is no authentication, it is the application's"
        }
        "allow" | "satisfy" | "internal" | "valid_referers" | "secure_link" => {
            "ACCESS IS NOT RESTRICTED HERE: write a mount with `respond = { status = 403 }`"
        }
        "autoindex" | "autoindex_exact_size" | "autoindex_localtime" | "random_index" => {
            "directories are not listed"
        }
        "disable_symlinks" => "links inside the root work, out of it never",
        "real_ip_header" | "real_ip_recursive" => {
            "X-Forwarded-For of `trusted_proxies` is believed"
        }
        "resolver" | "resolver_timeout" => "names are not resolved while it runs",
        "keepalive_requests" => "`[frontend.limits] requests_per_connection`",
        "more_set_headers" | "more_clear_headers" | "add_trailer" => {
            "headers are changed by the `rewrite` of a mount"
        }
        "sub_filter" | "sub_filter_once" | "ssi" | "addition_types" => "bodies are not changed",
        "health_check" => {
            "`[pool.check]`, which opens a connection every second unless it says otherwise"
        }
        "merge_slashes" => "`//` is `/`, always",
        "mail" => "mail is not spoken",
        "lingering_close"
        | "lingering_time"
        | "lingering_timeout"
        | "keepalive_disable"
        | "http2_max_concurrent_streams"
        | "http3"
        | "http2_push"
        | "quic_retry"
        | "http2_recv_buffer_size"
        | "chunked_transfer_encoding" => "not needed here, or always so",
        _ => "there is nothing like it",
    }
}
