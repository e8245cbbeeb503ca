//! Keys and values of past positions, in 32 to 2 bits a number.
//!
//! | module | what lives there |
//! | --- | --- |
//! | [`codec`] | how one vector (a token's key or value of one head) becomes codes and a scale |
//! | [`mode`] | a codec for keys and one for values, by name: `f16`, `k8v4`, ... |
//! | [`page`] | 64 positions of one layer, laid out as attention reads them |
//! | [`history`] | the pages of one layer: appending, packing what is no longer recent, dropping what no window sees |
//! | [`device_history`] | the same on a GPU, in tensors |
//! | [`buffers`] | how such tensors grow, and are copied |
//!
//! The layout is specified in `docs/format.md`, section 9. [`ops::Attention`](crate::ops::Attention) and
//! [`ops::DeviceAttention`](crate::ops::DeviceAttention) read it as it stands.

pub mod buffers;
pub mod codec;
pub mod device_history;
pub mod history;
pub mod mode;
pub mod page;

pub use codec::Codec;
pub use device_history::DeviceHistory;
pub use history::{History, RECENT};
pub use mode::Mode;
pub use page::{PAGE, Page, Side, Store};
