//! Packed keys and values on a Metal device against those of the CPU. Does nothing where there is no such device.
#![cfg(feature = "metal")]

use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng, rngs::StdRng};
use squish_kernels::{
    kv::{Codec, DeviceHistory, History, Mode},
    metal::first_device,
    ops::{Attention, DeviceAttention, SplitHeads},
};

const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
/// Positions that stay as they came.
const RECENT: usize = 64;

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// A text's queries, keys and values, and what both devices make of it.
struct Text {
    qkv: [Tensor; 3],
    cos: Tensor,
    sin: Tensor,
    window: Option<usize>,
    cpu: History,
    device: DeviceHistory,
    on: Device,
}

impl Text {
    fn new(mode: Mode, len: usize, window: Option<usize>, on: &Device) -> Self {
        let rng = &mut StdRng::seed_from_u64(len as u64);
        let mut tensor = |cols: usize| {
            let values: Vec<f32> = (0..len * cols).map(|_| rng.random_range(-1.0..1.0)).collect();
            Tensor::from_vec(values, (len, cols), &Device::Cpu).unwrap()
        };
        let qkv = [HEADS, KV_HEADS, KV_HEADS].map(|heads| tensor(heads * HEAD_DIM));
        let angles = tensor(HEAD_DIM / 2);
        Self {
            qkv,
            cos: angles.cos().unwrap(),
            sin: angles.sin().unwrap(),
            window,
            cpu: History::new(mode, RECENT),
            device: DeviceHistory::new(mode, RECENT),
            on: on.clone(),
        }
    }

    /// Reads on to `end`, in portions of `n`: both find the same.
    fn read(&mut self, end: usize, n: usize) {
        while self.cpu.len() < end {
            let start = self.cpu.len();
            let n = n.min(end - start);
            let rows = |t: &Tensor| t.narrow(0, start, n).unwrap();
            let [q, k, v, cos, sin] =
                [&self.qkv[0], &self.qkv[1], &self.qkv[2], &self.cos, &self.sin].map(rows);
            let split = split(&cos, &sin);
            let [asked, k_heads, v_heads] = split.split([&q, &k, &v]).unwrap();
            self.cpu.append(&k_heads, &v_heads, self.window).unwrap();
            self.cpu.prune();
            let op = Attention { scale: 0.5, softcap: None, history: &self.cpu };
            let expected = floats(&asked.apply_op1_no_bwd(&op).unwrap());

            let [q, k, v, cos, sin] = [q, k, v, cos, sin].map(|t| t.to_device(&self.on).unwrap());
            let qkv = [&q, &k, &v];
            let asked = self::split(&cos, &sin).append_pages(qkv, &mut self.device, self.window).unwrap();
            let op = DeviceAttention { scale: 0.5, softcap: None, history: &self.device };
            let found = floats(&asked.apply_op1_no_bwd(&op).unwrap());
            let signal: f32 = expected.iter().map(|v| v * v).sum();
            let noise: f32 = expected.iter().zip(&found).map(|(a, b)| (a - b).powi(2)).sum();
            let ratio = 10.0 * (signal / noise).log10();
            // A number between two codes may fall to the other.
            assert!(ratio > 55.0, "{} after {start}: {ratio} dB", self.cpu.mode());
            assert_eq!(self.device.len(), self.cpu.len());
        }
    }

    /// Goes back, as far as both can.
    fn go_back(&mut self, len: usize) {
        let len = self.cpu.reachable(len).min(self.device.reachable(len));
        let len = self.cpu.reachable(len).min(self.device.reachable(len));
        self.cpu.truncate(len);
        self.device.truncate(len);
        assert_eq!((self.cpu.len(), self.device.len()), (len, len));
    }
}

fn split<'a>(cos: &'a Tensor, sin: &'a Tensor) -> SplitHeads<'a> {
    SplitHeads { heads: HEADS, kv_heads: KV_HEADS, head_dim: HEAD_DIM, biases: None, norms: None, cos, sin }
}

fn device() -> Option<Device> {
    let device = first_device();
    if device.is_none() {
        eprintln!("skipped: there is no Metal device");
    }
    device
}

/// In portions of many sizes, with and without a window.
#[test]
fn finds_what_the_cpu_finds() {
    let Some(device) = device() else { return };
    let modes =
        [Mode::K8V8, Mode::K8V4, Mode::new(Codec::Int4, Codec::Int2), Mode::new(Codec::F16, Codec::Int4)];
    for (mode, window) in modes.into_iter().zip([None, Some(100), None, None]) {
        let mut text = Text::new(mode, 420, window, &device);
        text.read(190, 70);
        text.read(195, 1);
        text.read(300, 3);
        text.read(420, 120);
    }
}

/// A few positions, to a mark, and in a copy.
#[test]
fn goes_back_as_the_cpu_does() {
    let Some(device) = device() else { return };
    let mut text = Text::new(Mode::K8V4, 500, None, &device);
    text.read(150, 150);
    text.cpu.set_mark();
    text.device.set_mark();
    text.read(330, 90);
    text.go_back(325);
    assert_eq!(text.device.len(), 325);
    text.read(330, 1);
    let copies = (text.cpu.clone(), text.device.clone());
    // To the mark, whatever followed; what is read again is found again.
    text.go_back(150);
    assert_eq!(text.device.len(), 150);
    text.read(260, 50);
    // Copies did not go back.
    (text.cpu, text.device) = copies;
    assert_eq!(text.device.len(), 330);
    text.read(500, 85);
    // Before what is held and without a mark there, all of it is read again.
    text.go_back(100);
    assert_eq!(text.device.len(), 0);
    assert_eq!(text.device.bytes(), 0);
}

#[test]
fn refuses_what_does_not_fit() {
    let Some(device) = device() else { return };
    let mut text = Text::new(Mode::K8V4, 3, None, &device);
    text.read(2, 2);
    let zeros = |dims: (usize, usize)| Tensor::zeros(dims, candle_core::DType::F32, &device).unwrap();
    let (q, k, table) = (zeros((1, 320)), zeros((1, 320)), zeros((1, 160)));
    let wide = SplitHeads {
        heads: 1,
        kv_heads: 1,
        head_dim: 320,
        biases: None,
        norms: None,
        cos: &table,
        sin: &table,
    };
    let error = wide.append_pages([&q, &k, &k], &mut text.device, None).unwrap_err().to_string();
    assert!(error.contains("k8v4") && error.contains("320"), "{error}");
    let op = DeviceAttention { scale: 1.0, softcap: None, history: &text.device };
    for (heads, n, dim) in [(3, 1, 64), (4, 3, 64), (4, 1, 128)] {
        let q = Tensor::zeros((heads, n, dim), candle_core::DType::F32, &device).unwrap();
        let error = q.apply_op1_no_bwd(&op).unwrap_err().to_string();
        assert!(error.contains("squish-device-attention"), "{error}");
    }
    assert_eq!(text.device.len(), 2);
}
