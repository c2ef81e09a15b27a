//! Tests of the parts that need to look inside.

mod codec;
mod table;
