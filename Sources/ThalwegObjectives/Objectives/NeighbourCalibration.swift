import Glibc
import ThalwegCore

/// What both losses of segmentations look at: labels in a window around every pixel.
private struct Windows {
  static let inputs: [Input] = [
    .variable("logits", "N, C, H, W", "scores of the classes"),
    .integer("labels", "N, H, W", "labels, from 0 to C - 1 or ignore_index"),
  ]
  static let parameters: [Parameter] = [
    .integer("ksize", 3, .within(1, 1023), "side of the window, odd"),
    .integer("ignore_index", -100, .any, "label of pixels that are left out"),
  ]
  static func check(_ h: Hyper, _ method: String) throws(Failure) {
    guard h.integer("ksize") % 2 == 1 else {
      throw Failure(Status.range, "\(method): `ksize` must be odd, got \(h.integer("ksize"))")
    }
  }

  let labels: UnsafePointer<Int>, classes: Int, height: Int, width: Int, half: Int, ignored: Int
  /// Weights of the window, row by row.
  let weights: [Double]

  init<T: Real>(_ x: Inputs<T>, _ weights: [Double], ignoring ignored: Int) throws(Failure) {
    (labels, classes) = (try x.integers("labels"), x.sizes["C"])
    (height, width) = (x.sizes["H"], x.sizes["W"])
    (half, self.ignored, self.weights) = (Int(Double(weights.count).squareRoot()) / 2, ignored, weights)
    try Labels.check(labels, x.sizes["N"] * height * width, classes, ignoring: ignored, name: "labels")
  }

  /// The pixels that count.
  func count(_ pixels: Int) -> Int { (0..<pixels).reduce(0) { $0 + (labels[$1] == ignored ? 0 : 1) } }

  /// The shares of the classes around a pixel; neighbours that are left out have none.
  func shares(_ pixel: Int, outside0: Bool, into shares: inout [Double]) {
    let plane = pixel / (height * width) * height * width, row = pixel % (height * width) / width,
      column = pixel % width
    for c in 0..<classes { shares[c] = 0 }
    var total = 0.0, k = 0
    for dy in -half...half {
      for dx in -half...half {
        let y = row + dy, x = column + dx, weight = weights[k]
        k += 1
        let inside = y >= 0 && y < height && x >= 0 && x < width
        let at = plane + min(max(y, 0), height - 1) * width + min(max(x, 0), width - 1)
        let label = inside || !outside0 ? labels[at] : 0
        if label == ignored, inside || !outside0 { continue }
        shares[label] += weight
        total += weight
      }
    }
    for c in 0..<classes { shares[c] /= total }
  }
}

/// Neighbour-aware calibration of a segmentation: the logits stay near the shares of the labels around each pixel.
///
///     τ_c = share of label c in the window;   value = mean cross-entropy + λ·mean |τ − z|  (l2: its square)
///
/// The means are over the pixels that count, and over those times the classes. `on_softmax` takes probabilities in
/// place of the logits z. padding=replicate repeats the edge; class0 counts what lies outside as class 0.
/// Errors   TW_ERROR_RANGE: a label outside [0, C) that is not ignore_index.
/// Differs  the authors' release has class0, by its unfold. Neighbours that are left out have no share, and τ still
///          sums to 1. Where nothing counts the value is 0.
/// Source   Murugesan et al., 2023, arXiv:2303.06268.
struct NACL: Objective {
  static let method = Method(
    "nacl", .objective, "Neighbour-aware calibration: logits near the shares of the labels around each pixel.",
    rule: """
      tau_c = share of label c in the window
      value = mean cross-entropy + weight*mean |tau - logits|  (l2: squared; on_softmax: probabilities)
      """,
    source: "Murugesan, Adiga Vasudeva, Liu, Lombaert, Ben Ayed, Dolz, 2023, arXiv:2303.06268",
    parameters: [
      .number("weight", 0.1, .atLeast(0), "coefficient of the penalty"),
      .choice("distance", ["l1", "l2"], "of the penalty"),
      .choice("padding", ["replicate", "class0"], "what lies outside the image"),
      .flag("on_softmax", false, "probabilities in place of logits"),
    ] + Windows.parameters, inputs: Windows.inputs,
    validate: { (h) throws(Failure) in try Windows.check(h, "nacl") })
  let weight: Double, squares: Bool, outside0: Bool, onSoftmax: Bool, side: Int, ignored: Int
  init(_ h: Hyper) {
    (weight, squares, outside0) = (h.weight, h.is("distance", "l2"), h.is("padding", "class0"))
    (onSoftmax, side, ignored) = (h.on_softmax, h.integer("ksize"), h.integer("ignore_index"))
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let z = try x["logits"], c = x.sizes["C"], plane = x.sizes["H"] * x.sizes["W"], pixels = x.sizes["N"] * plane
    let windows = try Windows(x, [Double](repeating: 1, count: side * side), ignoring: ignored)
    let g = try cache?.keep("logits", pixels * c, T.self), counted = windows.count(pixels)
    if counted == 0 { return 0 }
    let share = 1 / Double(counted), pull = weight / Double(counted * c)
    return Rows.sum(pixels, work: 8 * c + 4 * side * side) { i in
      let label = windows.labels[i], first = i / plane * c * plane + i % plane
      if label == ignored { return 0 }
      var tau = [Double](repeating: 0, count: c), logSum = LogSum()
      windows.shares(i, outside0: outside0, into: &tau)
      for k in 0..<c { logSum.add(Double(z[first + k * plane])) }
      let top = logSum.value
      var value = share * (top - Double(z[first + label * plane])), mean = 0.0
      var slopes = tau
      for k in 0..<c {
        let logit = Double(z[first + k * plane]), p = exp(logit - top), d = (onSoftmax ? p : logit) - tau[k]
        value += pull * (squares ? d * d : abs(d))
        slopes[k] = pull * (squares ? 2 * d : sign(d))
        mean += p * slopes[k]
      }
      guard let g else { return value }
      for k in 0..<c {
        let p = exp(Double(z[first + k * plane]) - top)
        let through = onSoftmax ? p * (slopes[k] - mean) : slopes[k]
        g[first + k * plane] = T(share * (p - (k == label ? 1 : 0)) + through)
      }
      return value
    }
  }
}

/// Spatially varying label smoothing: the targets of a pixel are the labels around it, under a Gaussian window.
///
///     window w ∝ exp(−(i² + j²)/(2σ²)), the centre replaced by the sum of all others;
///       t = shares of the labels under it
///     value = mean over the pixels of −Σ_c t_c·log softmax(z)_c
///
/// Half of the target is the pixel's own label. The edge is repeated.
/// Errors   as of `nacl`.
/// Differs  as of `nacl`; a window of one pixel gives the plain cross-entropy.
/// Source   Islam, Glocker, 2021, arXiv:2104.05788.
struct SVLS: Objective {
  static let method = Method(
    "svls", .objective, "Spatially varying label smoothing: targets from the labels around each pixel.",
    rule: """
      w ~ exp(-(i^2 + j^2)/(2*sigma^2)), the centre replaced by the sum of all others;  t = shares of the labels under w
      value = mean over the pixels of -sum_c t_c*log softmax(logits)_c
      """,
    source: "Islam, Glocker, 2021, arXiv:2104.05788",
    parameters: [.number("sigma", 1, .above(0), "width of the window")] + Windows.parameters, inputs: Windows.inputs,
    validate: { (h) throws(Failure) in try Windows.check(h, "svls") })
  let sigma: Double, side: Int, ignored: Int
  init(_ h: Hyper) { (sigma, side, ignored) = (h.sigma, h.integer("ksize"), h.integer("ignore_index")) }

  private var window: [Double] {
    let half = side / 2
    var w = (0..<(side * side)).map { k -> Double in
      let y = Double(k / side - half), x = Double(k % side - half)
      return exp(-(x * x + y * y) / (2 * sigma * sigma))
    }
    w[half * side + half] = 0
    let rest = w.reduce(0, +)
    w[half * side + half] = rest == 0 ? 1 : rest
    return w
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let z = try x["logits"], c = x.sizes["C"], plane = x.sizes["H"] * x.sizes["W"], pixels = x.sizes["N"] * plane
    let windows = try Windows(x, window, ignoring: ignored)
    let g = try cache?.keep("logits", pixels * c, T.self), counted = windows.count(pixels)
    if counted == 0 { return 0 }
    let share = 1 / Double(counted)
    return Rows.sum(pixels, work: 8 * c + 4 * side * side) { i in
      let first = i / plane * c * plane + i % plane
      if windows.labels[i] == ignored { return 0 }
      var target = [Double](repeating: 0, count: c), logSum = LogSum()
      windows.shares(i, outside0: false, into: &target)
      for k in 0..<c { logSum.add(Double(z[first + k * plane])) }
      let top = logSum.value
      var value = 0.0
      for k in 0..<c {
        let logit = Double(z[first + k * plane])
        if target[k] != 0 { value += target[k] * (top - logit) }
        g?[first + k * plane] = T(share * (exp(logit - top) - target[k]))
      }
      return share * value
    }
  }
}
