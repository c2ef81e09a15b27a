//! Tests of stickiness.
