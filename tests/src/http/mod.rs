//! What tests of the web tier stand on: application servers ([`app`], [`apps`]), a server
//! of AJP13 that may do everything wrong ([`ajp`]) and real Tomcats ([`tomcat`], [`article`]), a raw
//! client that sends any bytes ([`raw`]), a backend that records them ([`recorder`]) and
//! readers of all habits that judge what was recorded ([`lax`]), the table of requests
//! ([`rows`]), certificates ([`certs`]), frames of HTTP/2 ([`frames`], [`h2once`]), load that
//! proves what became of every request ([`chaos`]), and scenes of one namespace with a
//! balancer on loopback ([`web`]).

pub mod ajp;
pub mod app;
pub mod apps;
pub mod article;
pub mod certs;
pub mod chaos;
pub mod frames;
pub mod h2once;
pub mod lax;
pub mod proc;
pub mod raw;
pub mod recorder;
pub mod rows;
pub mod tomcat;
pub mod web;
