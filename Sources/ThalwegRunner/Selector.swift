import ThalwegCore

/// Which tensors a branch of `route` takes.
package enum Selector: Sendable {
  case matrix, vector, scalar, role(Int), name(String), other

  static let words: [(String, Selector)] = [
    ("matrix", .matrix), ("vector", .vector), ("scalar", .scalar), ("bias", .role(2)), ("norm", .role(3)),
    ("embedding", .role(4)),
    ("head", .role(5)), ("other", .other),
  ]

  func takes(_ shape: Shape, _ name: String) -> Bool {
    switch self {
    case .matrix: shape.ndim >= 2 && shape.role != 4 && shape.role != 5
    case .vector: shape.ndim == 1
    case .scalar: shape.ndim == 0
    case .role(let r): shape.role == r
    case .name(let pattern): matches(Array(pattern.utf8)[...], Array(name.utf8)[...])
    case .other: true
    }
  }

  /// Shell-like patterns: `*` any run, `?` one byte.
  private func matches(_ pattern: ArraySlice<UInt8>, _ text: ArraySlice<UInt8>) -> Bool {
    var (p, t) = (pattern.startIndex, text.startIndex)
    var star: (Int, Int)?
    while t < text.endIndex {
      if p < pattern.endIndex, pattern[p] == UInt8(ascii: "*") {
        star = (p, t)
        p += 1
      } else if p < pattern.endIndex, pattern[p] == UInt8(ascii: "?") || pattern[p] == text[t] {
        p += 1
        t += 1
      } else if let (sp, st) = star {
        star = (sp, st + 1)
        (p, t) = (sp + 1, st + 1)
      } else {
        return false
      }
    }
    while p < pattern.endIndex, pattern[p] == UInt8(ascii: "*") { p += 1 }
    return p == pattern.endIndex
  }
}
