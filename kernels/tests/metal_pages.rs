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

    /// Queries, keys, values, cosines and sines of `n` positions.
    fn rows(&self, start: usize, n: usize) -> [Tensor; 5] {
        let [q, k, v] = &self.qkv;
        [q, k, v, &self.cos, &self.sin].map(|t| t.narrow(0, start, n).unwrap())
    }

    /// Appends `n` positions on the device, and returns their queries.
    fn append(&mut self, start: usize, n: usize) -> Tensor {
        let [q, k, v, cos, sin] = self.rows(start, n).map(|t| t.to_device(&self.on).unwrap());
        split(&cos, &sin).append_pages([&q, &k, &v], &mut self.device, self.window).unwrap()
    }

    /// Makes another text of it.
    fn negate(&mut self) {
        self.qkv = self.qkv.each_ref().map(|t| t.neg().unwrap());
    }

    /// Reads on to `end`, in portions of `n`: both find the same.
    fn read(&mut self, end: usize, n: usize) {
        while self.cpu.len() < end {
            let start = self.cpu.len();
            let n = n.min(end - start);
            let [q, k, v, cos, sin] = self.rows(start, n);
            let split = split(&cos, &sin);
            let [asked, k_heads, v_heads] = split.split([&q, &k, &v]).unwrap();
            self.cpu.append(&k_heads, &v_heads, self.window).unwrap();
            let op = Attention { scale: 0.5, softcap: None, history: &self.cpu };
            let expected = floats(&asked.apply_op1_no_bwd(&op).unwrap());
            self.cpu.prune();

            let asked = self.append(start, n);
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
        // Twice: where one comes no further than its mark, the other may have to go further back to its own.
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

/// A few positions, and to a mark, when the pages of both that are held as they came have been written over since.
#[test]
fn goes_back_as_the_cpu_does() {
    let Some(device) = device() else { return };
    let mut text = Text::new(Mode::K8V4, 1000, None, &device);
    text.read(150, 150);
    text.cpu.set_mark();
    text.device.set_mark();
    text.read(330, 90);
    text.go_back(325);
    assert_eq!(text.device.len(), 325);
    text.read(900, 90);
    // To the mark, whatever followed; what is read again is found again.
    text.go_back(150);
    assert_eq!(text.device.len(), 150);
    text.read(260, 50);
    // Before what is held and without a mark there, all of it is read again.
    text.read(900, 90);
    text.go_back(100);
    assert_eq!(text.device.len(), 0);
    assert_eq!(text.device.bytes(), 0);
    text.read(260, 130);
}

/// With tensors of their own: what is read behind a copy does not show in it.
#[test]
fn copies_are_of_their_own() {
    let Some(device) = device() else { return };
    let mut text = Text::new(Mode::K8V4, 1000, None, &device);
    text.read(330, 90);
    text.cpu.set_mark();
    text.device.set_mark();
    text.read(340, 1);
    let copies = (text.cpu.clone(), text.device.clone());
    text.negate();
    text.read(900, 90);
    text.negate();
    (text.cpu, text.device) = copies;
    assert_eq!(text.device.len(), 340);
    text.read(700, 90);
    text.go_back(330);
    assert_eq!(text.device.len(), 330);
    text.read(400, 35);
}

/// A ring that has grown does not hold the pages that were written over before it grew.
#[test]
fn a_ring_that_grows_holds_what_it_held() {
    let Some(device) = device() else { return };
    let mut text = Text::new(Mode::K8V4, 700, None, &device);
    text.read(20, 20);
    // Four pages, of which the first is 6.
    text.read(640, 60);
    assert_eq!(text.device.reachable(448), 448);
    text.device.truncate(448);
    assert_eq!(text.device.len(), 448);
    // Seven pages.
    text.append(448, 200);
    assert_eq!(text.device.len(), 648);
    assert_eq!(text.device.reachable(448), 448);
    assert_eq!(text.device.reachable(330), 0);
    text.device.truncate(330);
    assert!(text.device.is_empty());
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
