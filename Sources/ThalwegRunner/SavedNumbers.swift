import CThalweg
import ThalwegCore

/// What a small object remembers, as bytes: a mark (8 bytes), the length of its sentence and the sentence, a first
/// number, how many follow and they, and a hash of all that. Integers and doubles are little endian.
struct SavedNumbers {
  static let schedule: UInt64 = 0x31_6465_6863_7377_74  // "twsched1"
  static let objective: UInt64 = 0x7463_656a_626f_7774  // "twobject"
  var mark: UInt64
  var text: String
  var first: Double
  var numbers: [Double]

  init(mark: UInt64, text: String, first: Double, numbers: [Double]) {
    (self.mark, self.text, self.first, self.numbers) = (mark, text, first, numbers)
  }

  var bytes: [UInt8] {
    var out: [UInt8] = []
    func put(_ x: UInt64) { for i in 0..<8 { out.append(UInt8(truncatingIfNeeded: x >> (8 * UInt64(i)))) } }
    put(mark)
    put(UInt64(text.utf8.count))
    out += text.utf8
    put(first.bitPattern)
    put(UInt64(numbers.count))
    for x in numbers { put(x.bitPattern) }
    put(SavedNumbers.hash(out[...]))
    return out
  }
  private static func hash(_ bytes: ArraySlice<UInt8>) -> UInt64 {
    bytes.withUnsafeBytes { b in b.baseAddress.map { Safetensors.hash($0, b.count) } ?? 0 }
  }

  static func damaged(_ what: String, _ why: String) -> Failure {
    Failure(Status.format, "not a usable saved \(what): \(why)")
  }

  /// Reads what an object of the sentence `own` saved; `what` it is, for messages.
  init(_ data: UnsafeRawBufferPointer, mark: UInt64, of what: String, _ own: String) throws(Failure) {
    var rest = Array(data)[...]
    func word() throws(Failure) -> UInt64 {
      guard rest.count >= 8 else { throw SavedNumbers.damaged(what, "it is cut off") }
      defer { rest = rest.dropFirst(8) }
      return rest.prefix(8).reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }
    guard data.count >= 8, try word() == mark else {
      throw SavedNumbers.damaged(what, "it was not written by \(what.withArticle)")
    }
    let length = try word()
    guard length <= UInt64(rest.count) else { throw SavedNumbers.damaged(what, "it is cut off") }
    let text = String(decoding: rest.prefix(Int(length)), as: UTF8.self)
    rest = rest.dropFirst(Int(length))
    let first = Double(bitPattern: try word()), count = try word()
    guard count < UInt64(rest.count), rest.count == 8 * Int(count) + 8 else {
      throw SavedNumbers.damaged(what, "it is cut off, or longer than it says")
    }
    var numbers: [Double] = []
    for _ in 0..<count { numbers.append(Double(bitPattern: try word())) }
    guard try word() == SavedNumbers.hash(Array(data)[..<(data.count - 8)]) else {
      throw SavedNumbers.damaged(what, "its hash does not fit")
    }
    guard text == own else {
      throw Failure(Status.mismatch, "what was saved is of `\(text)`, this \(what) is `\(own)`")
    }
    self.init(mark: mark, text: text, first: first, numbers: numbers)
  }
}
