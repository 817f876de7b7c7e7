import CThalweg
import ThalwegCore

/// The frame of a checkpoint, the safetensors layout: a length, a JSON header, and the bytes.
///
///     8 bytes      length of the header, little endian
///     header       {"__metadata__": {"format": "thalweg", "version": "2", "hash": "..."}, "name": {"dtype", "shape",
///     "data_offsets"}, ...}
///     data         entry after entry
///
/// The hash covers names, types, offsets and data, so that a single damaged bit is found.
struct Safetensors {
  static let version = 2
  static let headerLimit = 1 << 28

  struct Entry {
    var name: String
    var dtype: String
    var shape: [Int]
    var start: Int
    var end: Int
    var bytes: Int { end - start }
  }

  // MARK: writing

  /// Entries where they lie in memory: a checkpoint is written piece by piece and never held whole.
  final class Writer {
    private(set) var entries: [Entry] = []
    private var pieces: [UnsafeRawPointer] = []
    /// Copies of what does not lie anywhere for long.
    private var owned: [Memory] = []
    private var at = 0
    private let allocator: Allocator
    private lazy var table: String = Safetensors.table(entries)
    init(_ allocator: Allocator) { self.allocator = allocator }

    func add(_ name: String, _ dtype: String, _ shape: [Int], _ base: UnsafeRawPointer, _ bytes: Int) {
      entries.append(Entry(name: name, dtype: dtype, shape: shape, start: at, end: at + bytes))
      pieces.append(base)
      at += bytes
    }
    func add(_ name: String, _ dtype: String, _ shape: [Int], _ memory: Memory, _ bytes: Int) {
      owned.append(memory)
      add(name, dtype, shape, memory.base, bytes)
    }
    private func add(_ name: String, _ dtype: String, _ count: Int, _ raw: UnsafeRawBufferPointer) throws(Failure) {
      let m = try Memory(raw.count, allocator, zeroed: false)
      if let p = raw.baseAddress { m.base.copyMemory(from: p, byteCount: raw.count) }
      owned.append(m)
      add(name, dtype, [count], m.base, raw.count)
    }
    func add(_ name: String, _ numbers: [Double]) throws(Failure) {
      var failure: Failure?
      numbers.withUnsafeBytes { raw in
        do throws(Failure) { try add(name, "F64", numbers.count, raw) } catch { failure = error }
      }
      if let failure { throw failure }
    }
    func add(_ name: String, text: String) throws(Failure) {
      var failure: Failure?
      let bytes = Array(text.utf8)
      bytes.withUnsafeBytes { raw in
        do throws(Failure) { try add(name, "U8", bytes.count, raw) } catch { failure = error }
      }
      if let failure { throw failure }
    }

    private func header(_ hash: UInt64) -> [UInt8] {
      let hex = String(hash, radix: 16)
      let padded = String(repeating: "0", count: 16 - hex.utf8.count) + hex
      let own = #"{"__metadata__":{"format":"thalweg","version":"\#(Safetensors.version)","hash":"\#(padded)"},"#
      var text = Array((own + table + "}").utf8)
      while text.count % 8 != 0 { text.append(32) }
      return (0..<8).map { UInt8(truncatingIfNeeded: text.count >> (8 * $0)) } + text
    }
    /// Bytes of the whole; known without reading the data.
    var size: Int { header(0).count + at }

    func write(_ put: (UnsafeRawBufferPointer) throws(Failure) -> Void) throws(Failure) {
      var hasher = Digest(table)
      for (e, p) in zip(entries, pieces) { hasher.add(p, e.bytes) }
      let head = header(hasher.finish())
      var failure: Failure?
      head.withUnsafeBytes { raw in do throws(Failure) { try put(raw) } catch { failure = error } }
      if let failure { throw failure }
      for (e, p) in zip(entries, pieces) where e.bytes > 0 { try put(UnsafeRawBufferPointer(start: p, count: e.bytes)) }
    }
  }

  private static func table(_ list: [Entry]) -> String {
    var out = ""
    for (i, e) in list.enumerated() {
      if i > 0 { out += "," }
      out +=
        "\(JSON.escape(e.name)):{\"dtype\":\"\(e.dtype)\","
        + "\"shape\":[\(e.shape.map(String.init).joined(separator: ","))],"
      out += "\"data_offsets\":[\(e.start),\(e.end)]}"
    }
    return out
  }

  // MARK: reading

  let written: Int
  let found: [Exact: Entry]
  let order: [Entry]
  private let body: UnsafeRawBufferPointer

  static func damaged(_ why: String) -> Failure { Failure(Status.format, "not a usable thalweg checkpoint: \(why)") }

  /// Checks that the bytes are whole; they must outlive this.
  init(_ data: UnsafeRawBufferPointer) throws(Failure) {
    guard data.count >= 8, let base = data.baseAddress else { throw Safetensors.damaged("it has \(data.count) bytes") }
    let length = base.loadUnaligned(as: UInt64.self)
    guard length <= UInt64(Safetensors.headerLimit), Int(length) <= data.count - 8 else {
      throw Safetensors.damaged("the header is cut off")
    }
    let n = Int(length)
    var json = JSON(Array(UnsafeRawBufferPointer(start: base + 8, count: n)))
    guard let top = json.object() else { throw Safetensors.damaged("the header is no JSON object") }
    guard case .object(let meta)? = top.first(where: { $0.key == "__metadata__" })?.item,
      case .string("thalweg")? = meta.first(where: { $0.key == "format" })?.item
    else { throw Safetensors.damaged("it was not written by thalweg") }
    var version = 1
    if case .string(let v)? = meta.first(where: { $0.key == "version" })?.item, let k = Int(v) { version = k }
    guard version <= Safetensors.version else {
      throw Failure(
        Status.version, "the checkpoint has version \(version), this library reads up to \(Safetensors.version)")
    }
    var found: [Exact: Entry] = [:], order: [Entry] = []
    for field in top where field.key != "__metadata__" {
      let name = field.key
      guard case .object(let fields) = field.item,
        case .string(let dtype)? = fields.first(where: { $0.key == "dtype" })?.item,
        case .numbers(let shape)? = fields.first(where: { $0.key == "shape" })?.item,
        case .numbers(let offsets)? = fields.first(where: { $0.key == "data_offsets" })?.item, offsets.count == 2,
        offsets[0] >= 0,
        offsets[1] >= offsets[0], offsets[1] <= data.count - 8 - n, found[Exact(name)] == nil
      else { throw Safetensors.damaged("the entry `\(name)` is broken") }
      let e = Entry(name: name, dtype: dtype, shape: shape, start: offsets[0], end: offsets[1])
      found[Exact(name)] = e
      order.append(e)
    }
    body = UnsafeRawBufferPointer(start: base + 8 + n, count: data.count - 8 - n)
    var hasher = Digest(Safetensors.table(order))
    if let p = body.baseAddress { hasher.add(p, body.count) }
    guard case .string(let stored)? = meta.first(where: { $0.key == "hash" })?.item,
      UInt64(stored, radix: 16) == hasher.finish()
    else {
      throw Safetensors.damaged("its hash does not fit: it was changed or cut")
    }
    (written, self.found, self.order) = (version, found, order)
  }

  func text(_ name: String) -> String? {
    guard let e = found[Exact(name)], e.dtype == "U8" else { return nil }
    return String(validating: body[e.start..<e.end], as: UTF8.self)
  }
  func numbers(_ name: String) -> [Double]? {
    guard let e = found[Exact(name)], e.dtype == "F64", e.bytes % 8 == 0, let p = body.baseAddress else { return nil }
    return (0..<(e.bytes / 8)).map { p.loadUnaligned(fromByteOffset: e.start + $0 * 8, as: Double.self) }
  }
  func copy(_ e: Entry, to target: UnsafeMutableRawPointer, _ bytes: Int) {
    if bytes > 0, bytes == e.bytes, let p = body.baseAddress { target.copyMemory(from: p + e.start, byteCount: bytes) }
  }

  // MARK: the hash

  /// Of a piece of memory on its own.
  static func hash(_ p: UnsafeRawPointer, _ n: Int) -> UInt64 {
    var d = Digest(seed: 2)
    d.add(p, n)
    return d.finish()
  }

  /// FNV-1a over 8-byte words, four lanes: fast, and sensitive to every bit. Pieces of any length give the hash of the
  /// whole.
  private struct Digest {
    private var h: (UInt64, UInt64, UInt64, UInt64)
    private var carry: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
    private var held = 0, total = 0

    init(seed: UInt64) {
      h = (
        seed ^ 0xcbf2_9ce4_8422_2325, seed ^ 0x9e37_79b9_7f4a_7c15, seed ^ 0xc2b2_ae3d_27d4_eb4f,
        seed ^ 0x1656_67b1_9e37_79f9
      )
    }
    /// Begins with the table of entries.
    init(_ table: String) {
      var first = Digest(seed: 1)
      Array(table.utf8).withUnsafeBytes { if let p = $0.baseAddress { first.add(p, $0.count) } }
      self.init(seed: first.finish())
    }
    private static func stir(_ a: UInt64, _ w: UInt64) -> UInt64 {
      let x = (a ^ w) &* 0x100_0000_01b3
      return x ^ (x >> 29)
    }
    private mutating func take(_ p: UnsafeRawPointer) {
      func word(_ k: Int) -> UInt64 { p.loadUnaligned(fromByteOffset: k, as: UInt64.self) }
      h = (Digest.stir(h.0, word(0)), Digest.stir(h.1, word(8)), Digest.stir(h.2, word(16)), Digest.stir(h.3, word(24)))
    }
    mutating func add(_ p: UnsafeRawPointer, _ n: Int) {
      total += n
      var i = 0
      if held > 0 {
        i = min(n, 32 - held)
        withUnsafeMutableBytes(of: &carry) { $0.baseAddress.map { $0 + held }?.copyMemory(from: p, byteCount: i) }
        held += i
        guard held == 32 else { return }
        withUnsafeBytes(of: carry) { if let q = $0.baseAddress { take(q) } }
        held = 0
      }
      while i + 32 <= n {
        take(p + i)
        i += 32
      }
      guard i < n else { return }
      held = n - i
      withUnsafeMutableBytes(of: &carry) { $0.baseAddress?.copyMemory(from: p + i, byteCount: held) }
    }
    mutating func finish() -> UInt64 {
      withUnsafeBytes(of: carry) { for b in $0.prefix(held) { h.0 = Digest.stir(h.0, UInt64(b) | 0x100) } }
      return Random.mix(h.0, Random.mix(h.1, Random.mix(h.2, h.3 &+ UInt64(total))))
    }
  }
}

/// Just enough JSON for the header: objects of strings, objects, and lists of whole numbers. Everything else is
/// refused.
struct JSON {
  struct Field {
    let key: String
    let item: Item
  }
  indirect enum Item {
    case string(String)
    case numbers([Int])
    case object([Field])
  }
  private let b: [UInt8]
  private var i = 0
  private var depth = 0
  init(_ bytes: [UInt8]) { b = bytes }

  /// A string as JSON writes it.
  static func escape(_ s: String) -> String {
    var out = "\""
    for u in s.unicodeScalars {
      switch u.value {
      case 34: out += "\\\""
      case 92: out += "\\\\"
      case 0..<32:
        let hex = Array("0123456789abcdef")
        out += "\\u00" + String(hex[Int(u.value >> 4)]) + String(hex[Int(u.value & 15)])
      default: out.unicodeScalars.append(u)
      }
    }
    return out + "\""
  }

  private mutating func space() { while i < b.count, b[i] == 32 || b[i] == 9 || b[i] == 10 || b[i] == 13 { i += 1 } }
  private mutating func take(_ c: Character) -> Bool {
    space()
    guard i < b.count, b[i] == c.asciiValue else { return false }
    i += 1
    return true
  }

  mutating func object() -> [Field]? {
    depth += 1
    defer { depth -= 1 }
    guard depth < 4, take("{") else { return nil }
    var list: [Field] = []
    if take("}") { return list }
    repeat {
      guard let key = string(), take(":"), let v = value() else { return nil }
      list.append(Field(key: key, item: v))
    } while take(",")
    guard take("}") else { return nil }
    return list
  }

  private mutating func value() -> Item? {
    space()
    guard i < b.count else { return nil }
    switch b[i] {
    case UInt8(ascii: "\""): return string().map { .string($0) }
    case UInt8(ascii: "{"): return object().map { .object($0) }
    case UInt8(ascii: "["):
      i += 1
      var numbers: [Int] = []
      if take("]") { return .numbers(numbers) }
      repeat {
        space()
        var n = 0, digits = 0
        while i < b.count, b[i] >= 48, b[i] <= 57, digits < 18 {
          n = n * 10 + Int(b[i] - 48)
          i += 1
          digits += 1
        }
        guard digits > 0 else { return nil }
        numbers.append(n)
      } while take(",")
      return take("]") ? .numbers(numbers) : nil
    default: return nil
    }
  }

  private mutating func string() -> String? {
    guard take("\"") else { return nil }
    var out: [UInt8] = []
    while i < b.count, b[i] != UInt8(ascii: "\"") {
      if b[i] == UInt8(ascii: "\\") {
        guard i + 1 < b.count else { return nil }
        switch b[i + 1] {
        case UInt8(ascii: "\""), UInt8(ascii: "\\"):
          out.append(b[i + 1])
          i += 2
        case UInt8(ascii: "u"):
          guard i + 5 < b.count, let code = UInt8(String(decoding: b[(i + 2)..<(i + 6)], as: UTF8.self), radix: 16)
          else { return nil }
          out.append(code)
          i += 6
        default: return nil
        }
      } else {
        out.append(b[i])
        i += 1
      }
    }
    guard take("\"") else { return nil }
    return String(decoding: out, as: UTF8.self)
  }
}
