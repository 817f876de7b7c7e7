import Glibc
import ThalwegCore

/// Where an image has edges, for `edge_guided_mse`.
///
///     m = |Sobel(Σ channels)|, with the border repeated     mask = 1 where m > thresh·mean m;  soft: m/max m
///
/// image is (H, W, K). A constant image has no edges.
/// Source   Sobel, Feldman, 1968; Chen et al., 2024, arXiv:2402.13252.
struct EdgeMask: Objective {
  static let method = Method(
    "edge_mask", .diagnostic, "Where an image has edges.",
    rule: "m = |Sobel(sum of channels)|;  mask = [m > thresh*mean m], soft: m/max m",
    source: "Sobel, Feldman, 1968; Chen et al., 2024, arXiv:2402.13252",
    parameters: [
      .number("thresh", 1.25, .above(0), "times the mean magnitude"), .flag("soft", false, "a share, not 0 and 1"),
    ],
    inputs: [.constant("image", "H, W, K", "an image"), .result("mask", "H, W", "edges, 0 to 1")])
  let thresh: Double, soft: Bool
  init(_ h: Hyper) { (thresh, soft) = (h.thresh, h.soft) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let image = try x["image"], height = x.sizes["H"], width = x.sizes["W"], channels = x.sizes["K"],
      space = Workspace()
    defer { space.close() }
    let gray = try space.room(area(height, width), Double.self), m = try space.room(height * width, Double.self)
    for i in 0..<(height * width) { for c in 0..<channels { gray[i] += Double(image[i * channels + c]) } }
    func at(_ i: Int, _ j: Int) -> Double { gray[min(max(i, 0), height - 1) * width + min(max(j, 0), width - 1)] }
    var sum = 0.0, top = 0.0
    for i in 0..<height {
      for j in 0..<width {
        var across = 0.0, down = 0.0
        for (k, weight) in [(-1, 1.0), (0, 2.0), (1, 1.0)] {
          across += weight * (at(i + k, j + 1) - at(i + k, j - 1))
          down += weight * (at(i + 1, j + k) - at(i - 1, j + k))
        }
        m[i * width + j] = (across * across + down * down).squareRoot()
        sum += m[i * width + j]
        top = larger(top, m[i * width + j])
      }
    }
    let mean = sum / Double(height * width)
    if let mask = try cache?.keep("mask", height * width, T.self) {
      for i in 0..<(height * width) {
        mask[i] = T(m[i].isNaN ? .nan : soft ? (top == 0 ? 0 : m[i] / top) : m[i] > thresh * mean ? 1 : 0)
      }
    }
    return mean
  }
}
