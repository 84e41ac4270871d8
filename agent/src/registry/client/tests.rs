//! The client against registries that misbehave in every way it should notice.

mod pushing;
mod reading;
mod recovery;
