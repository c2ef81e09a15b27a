//! The tables of the web tier as written; see [`crate::config::raw`].

use toml::Spanned;

use crate::config::raw::{Field, Section};

/// A table, when it is there.
pub(in crate::config) type Table<T> = Option<Spanned<Section<T>>>;
/// An array of tables.
pub(in crate::config) type Tables<T> = Vec<Spanned<Section<T>>>;

/// A table's keys: serde's struct, with every key optional and no others.
macro_rules! table {
    ($(#[$meta:meta])* $name:ident { $($key:ident: $kind:ty,)* }) => {
        $(#[$meta])*
        #[derive(Default, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub(in crate::config) struct $name {
            $(pub(in crate::config) $key: $kind,)*
        }
    };
}

table! {
    /// `[http]`.
    RawHttp {
        threads: Field,
        pin_threads: Field,
        learned_max: Field,
        max_connections: Field,
        drain_timeout: Field,
    }
}

table! {
    /// `[frontend.tls]`.
    RawTls {
        certificate: Tables<RawCertificate>,
        minimum: Field,
        client_auth: Field,
        client_authorities: Field,
    }
}

table! {
    /// `[[frontend.tls.certificate]]`.
    RawCertificate {
        certificate: Field,
        key: Field,
    }
}

table! {
    /// `[frontend.limits]`.
    RawLimits {
        headers: Field,
        head_bytes: Field,
        target_bytes: Field,
        body_bytes: Field,
        connections: Field,
        connections_per_source: Field,
        requests_per_source: Field,
        requests_per_connection: Field,
        h2_streams: Field,
        h2_resets: Field,
    }
}

table! {
    /// `[frontend.timeouts]`.
    RawClientTimeouts {
        handshake: Field,
        headers: Field,
        keep_alive: Field,
        body_idle: Field,
        body_rate: Field,
        send: Field,
    }
}

table! {
    /// `[frontend.log]`.
    RawLog {
        file: Field,
        format: Field,
        details: Field,
    }
}

table! {
    /// `[[frontend.site]]`.
    RawSite {
        hosts: Field,
        pool: Field,
        root: Field,
        mount: Tables<RawRoute>,
        exclude: Tables<RawExclusion>,
        fallback: Table<RawRoute>,
    }
}

table! {
    /// `[[frontend.site.mount]]` and `[frontend.site.fallback]`, which has no pattern.
    RawRoute {
        pattern: Field,
        pool: Field,
        files: Table<RawFiles>,
        redirect: Table<RawRedirect>,
        respond: Table<RawRespond>,
        stats: Table<RawStats>,
        rewrite: Table<RawRewrite>,
        compress: Field,
    }
}

table! {
    /// `[[frontend.site.exclude]]`.
    RawExclusion {
        pattern: Field,
        pool: Field,
    }
}

table! {
    /// `files = { .. }` of a mount.
    RawFiles {
        root: Field,
        index: Field,
        precompressed: Field,
        cache_control: Field,
    }
}

table! {
    /// `redirect = { .. }` of a mount.
    RawRedirect {
        location: Field,
        status: Field,
    }
}

table! {
    /// `respond = { .. }` of a mount, and `[pool.maintenance]`.
    RawRespond {
        status: Field,
        content_type: Field,
        body: Field,
        body_file: Field,
    }
}

table! {
    /// `stats = { .. }` of a mount.
    RawStats {
        format: Field,
        allow: Field,
    }
}

table! {
    /// `rewrite = { .. }` of a mount.
    RawRewrite {
        strip_prefix: Field,
        add_prefix: Field,
        host: Field,
        request_headers: Tables<RawHeaderChange>,
        response_headers: Tables<RawHeaderChange>,
    }
}

table! {
    /// One of `request_headers` and `response_headers`.
    RawHeaderChange {
        set: Field,
        add: Field,
        remove: Field,
        value: Field,
    }
}

table! {
    /// `[pool.sticky]`, of every type.
    RawSticky {
        r#type: Field,
        cookie: Field,
        parameter: Field,
        force: Field,
        value: Field,
        key_file: Field,
        path: Field,
        domain: Field,
        max_age: Field,
        secure: Field,
        http_only: Field,
        same_site: Field,
        partitioned: Field,
        idle: Field,
        group: Field,
        ipv4_prefix: Field,
        ipv6_prefix: Field,
    }
}

table! {
    /// `[pool.queue]`.
    RawQueue {
        length: Field,
        timeout: Field,
    }
}

table! {
    /// `[pool.retries]`.
    RawRetries {
        attempts: Field,
        budget_percent: Field,
        non_idempotent: Field,
        on_status: Field,
    }
}

table! {
    /// `[pool.observe]`.
    RawObserve {
        enabled: Field,
        failures: Field,
        status: Field,
        ejection: Field,
        max_ejection: Field,
    }
}

table! {
    /// `[pool.timeouts]`.
    RawBackendTimeouts {
        connect: Field,
        response: Field,
        idle: Field,
        request: Field,
        tunnel: Field,
        keep_alive: Field,
    }
}

table! {
    /// `[pool.ping]`.
    RawPing {
        connect: Field,
        reuse: Field,
        timeout: Field,
    }
}

table! {
    /// `[pool.tls]`.
    RawBackendTls {
        verify: Field,
        authorities: Field,
        server_name: Field,
        certificate: Field,
        key: Field,
    }
}
