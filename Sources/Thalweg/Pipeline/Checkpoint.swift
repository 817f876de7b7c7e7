import CThalweg

/// The whole state of an optimizer in the safetensors layout: a length, a JSON header, and the bytes.
///
///     8 bytes      length of the header, little endian
///     header       {"__metadata__": {"format": "thalweg", "version": "1", "hash": "..."}, "name": {"dtype", "shape", "data_offsets"}, ...}
///     data         the state as stored, tensor after tensor
///
/// The hash covers names, types, offsets and data, so that a single damaged bit is found. Nothing is changed until all is checked.
package enum Checkpoint {
  package static let version = 1
  private static let headerLimit = 1 << 28

  struct Entry {
    var name: String
    var dtype: String
    var shape: [Int]
    var start: Int
    var end: Int
  }

  /// Temporary state is part of it only `within` a step.
  private static func entries(_ o: Optimizer, within: Bool) -> (list: [Entry], size: Int, counters: [(String, [Double])], sentence: [UInt8], rows: [Optimizer.StateRow]) {
    var list: [Entry] = []
    var at = 0
    func add(_ name: String, _ dtype: String, _ shape: [Int], _ bytes: Int) {
      list.append(Entry(name: name, dtype: dtype, shape: shape, start: at, end: at + bytes))
      at += bytes
    }
    let sentence = Array(o.fullSentence.utf8)
    add("engine/sentence", "U8", [sentence.count], sentence.count)
    let counters = o.counters()
    for (name, values) in counters { add(name, "F64", [values.count], values.count * 8) }
    let rows = o.allStateRows().filter { within || !$0.slot.temporary }
    for row in rows {
      let b = o.bound[row.tensor]
      let bytes = o.stateBytes(row)
      let dense = row.index < 0 ? "F32" : row.format == .direct ? (b.view.dtype == .f64 ? "F64" : "F32") : row.format == .bf16 ? "BF16" : "U8"
      let shape = dense == "U8" ? [bytes] : row.slot.count.map { [$0] } ?? b.view.shape
      // Stages are numbered, so that two of one name do not meet.
      let stage = row.index < 0 ? "engine" : "\(row.stage.id).\(row.stage.name)"
      add("\(b.name)/\(stage)/\(row.slot.name)", dense, shape, bytes)
    }
    return (list, at, counters, sentence, rows)
  }

  /// FNV-1a over 8-byte words, four lanes: fast, and sensitive to every bit.
  private static func hash(_ p: UnsafeRawPointer, _ n: Int, _ seed: UInt64) -> UInt64 {
    var h: (UInt64, UInt64, UInt64, UInt64) = (seed ^ 0xcbf2_9ce4_8422_2325, seed ^ 0x9e37_79b9_7f4a_7c15, seed ^ 0xc2b2_ae3d_27d4_eb4f, seed ^ 0x1656_67b1_9e37_79f9)
    let prime: UInt64 = 0x100_0000_01b3
    var i = 0
    func word(_ k: Int) -> UInt64 { p.loadUnaligned(fromByteOffset: k, as: UInt64.self) }
    func stir(_ a: UInt64, _ w: UInt64) -> UInt64 { let x = (a ^ w) &* prime; return x ^ (x >> 29) }
    while i + 32 <= n {
      h = (stir(h.0, word(i)), stir(h.1, word(i + 8)), stir(h.2, word(i + 16)), stir(h.3, word(i + 24)))
      i += 32
    }
    while i < n {
      h.0 = stir(h.0, UInt64(p.load(fromByteOffset: i, as: UInt8.self)) | 0x100)
      i += 1
    }
    return Random.mix(h.0, Random.mix(h.1, Random.mix(h.2, h.3 &+ UInt64(n))))
  }

  private static func escape(_ s: String) -> String {
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

  private static func table(_ list: [Entry]) -> String {
    list.map { e in
      "\(escape(e.name)):{\"dtype\":\"\(e.dtype)\",\"shape\":[\(e.shape.map(String.init).joined(separator: ","))],\"data_offsets\":[\(e.start),\(e.end)]}"
    }.joined(separator: ",")
  }

  /// The size of the checkpoint, and a function that writes it.
  package static func save(_ o: Optimizer) throws(Failure) -> [UInt8] {
    try o.allocated()
    let (list, size, counters, sentence, rows) = entries(o, within: o.phase >= 0)
    let body = table(list)
    var data = [UInt8](repeating: 0, count: size)
    data.withUnsafeMutableBytes { raw in
      guard let p = raw.baseAddress else { return }
      var k = 0
      func put(_ q: UnsafeRawPointer, _ n: Int) {
        (p + list[k].start).copyMemory(from: q, byteCount: n)
        k += 1
      }
      sentence.withUnsafeBytes { put($0.baseAddress ?? UnsafeRawPointer(p), $0.count) }
      for (_, values) in counters { values.withUnsafeBytes { put($0.baseAddress ?? UnsafeRawPointer(p), $0.count) } }
      for row in rows { let s = o.storage(row); put(s.base, s.bytes) }
    }
    let h = data.withUnsafeBytes { d in Array(body.utf8).withUnsafeBytes { b in digest(b, d) } }
    var header = "{\"__metadata__\":{\"format\":\"thalweg\",\"version\":\"\(version)\",\"hash\":\"\(h)\"},\(body)}"
    while header.utf8.count % 8 != 0 { header += " " }
    let n = UInt64(header.utf8.count)
    var out: [UInt8] = []
    out.reserveCapacity(8 + header.utf8.count + size)
    for i in 0..<8 { out.append(UInt8(truncatingIfNeeded: n >> (8 * UInt64(i)))) }
    out += Array(header.utf8)
    out += data
    return out
  }

  private static func digest(_ b: UnsafeRawBufferPointer, _ d: UnsafeRawBufferPointer) -> String {
    let empty = UnsafeRawPointer(StepContext.nothing)
    return String(hash(d.baseAddress ?? empty, d.count, hash(b.baseAddress ?? empty, b.count, 1)), radix: 16)
  }

  package static func load(_ o: Optimizer, _ data: UnsafeRawBufferPointer) throws(Failure) {
    guard !o.evaluating else { throw Failure(Status.sequence, "loading in evaluation mode; call set_mode(train) first") }
    func damaged(_ why: String) -> Failure { Failure(Status.format, "not a usable thalweg checkpoint: \(why)") }
    guard data.count >= 8, let base = data.baseAddress else { throw damaged("it has \(data.count) bytes") }
    let length = base.loadUnaligned(as: UInt64.self)
    guard length <= UInt64(headerLimit), Int(length) <= data.count - 8 else { throw damaged("the header is cut off") }
    let n = Int(length)
    let header = Array(UnsafeRawBufferPointer(start: base + 8, count: n))
    var json = JSON(header)
    guard let top = json.object() else { throw damaged("the header is no JSON object") }
    guard case .object(let meta)? = top.first(where: { $0.0 == "__metadata__" })?.1, case .string("thalweg")? = meta.first(where: { $0.0 == "format" })?.1 else {
      throw damaged("it was not written by thalweg")
    }
    if case .string(let v)? = meta.first(where: { $0.0 == "version" })?.1, let k = Int(v), k > version {
      throw Failure(Status.version, "the checkpoint has version \(k), this library reads up to \(version)")
    }
    var found: [String: Entry] = [:]
    var order: [Entry] = []
    for (name, v) in top where name != "__metadata__" {
      guard case .object(let fields) = v, case .string(let dtype)? = fields.first(where: { $0.0 == "dtype" })?.1,
        case .numbers(let shape)? = fields.first(where: { $0.0 == "shape" })?.1,
        case .numbers(let offsets)? = fields.first(where: { $0.0 == "data_offsets" })?.1, offsets.count == 2, offsets[0] >= 0,
        offsets[1] >= offsets[0], offsets[1] <= data.count - 8 - n
      else { throw damaged("the entry `\(name)` is broken") }
      let e = Entry(name: name, dtype: dtype, shape: shape, start: offsets[0], end: offsets[1])
      found[name] = e
      order.append(e)
    }
    let body = UnsafeRawBufferPointer(start: base + 8 + n, count: data.count - 8 - n)
    guard case .string(let stored)? = meta.first(where: { $0.0 == "hash" })?.1, stored == Array(table(order).utf8).withUnsafeBytes({ digest($0, body) }) else {
      throw damaged("its hash does not fit: it was changed or cut")
    }

    // Everything is intact; does it belong to this optimizer?
    try o.allocated()
    guard let s = found["engine/sentence"], let text = String(validatingCString: body[s.start..<s.end].map { CChar(bitPattern: $0) } + [0]) else {
      throw damaged("it has no sentence")
    }
    let saved: [String]
    do { saved = try Compiler(text).stages.map(\.name) } catch {
      throw Failure(Status.mismatch, "the checkpoint's sentence is not known here: \(error.message)")
    }
    guard saved == o.stages.map(\.name) else {
      throw Failure(Status.mismatch, "the checkpoint is of `\(saved.joined(separator: " | "))`, this optimizer is `\(o.stages.map(\.name).joined(separator: " | "))`")
    }
    guard let steps = found["engine/step"], steps.end - steps.start == 72 else { throw damaged("it has no counters") }
    let within = body.loadUnaligned(fromByteOffset: steps.start + 16, as: Double.self) >= 0
    let (expected, _, counters, _, rows) = entries(o, within: within)
    for e in expected where e.name != "engine/sentence" && e.name != "engine/answer" && !e.name.contains("/schedule.") {
      guard let f = found[e.name] else {
        throw Failure(Status.mismatch, "the checkpoint has no `\(e.name)`" + suggestion(e.name, Array(found.keys).sorted()))
      }
      guard f.dtype == e.dtype, f.shape == e.shape, f.end - f.start == e.end - e.start else {
        throw Failure(Status.mismatch, "`\(e.name)` is \(f.dtype) \(f.shape) in the checkpoint, \(e.dtype) \(e.shape) here")
      }
    }
    let extra = found.keys.filter { k in !expected.contains { $0.name == k } && !k.contains("/schedule.") && !(within && k == "engine/answer") }.sorted()
    if let k = extra.first { throw Failure(Status.mismatch, "the checkpoint has `\(k)`, which this optimizer does not") }
    // The live hyper-parameters were part of the run.
    let values = try o.parse(sentence: text)
    var numbers: [String: [Double]] = [:]
    for (name, old) in counters {
      guard let f = found[name], f.end - f.start == (name.contains("/schedule.") ? f.end - f.start : old.count * 8) else { continue }
      numbers[name] = (0..<((f.end - f.start) / 8)).map { body.loadUnaligned(fromByteOffset: f.start + $0 * 8, as: Double.self) }
    }
    if within, let f = found["engine/answer"] {
      // a matrix: its sides, then its elements
      let row = (0..<((f.end - f.start) / 8)).map { body.loadUnaligned(fromByteOffset: f.start + $0 * 8, as: Double.self) }
      guard row.count >= 2, row[0] >= 0, row[1] >= 0, row[0] <= 0x1p31, row[1] <= 0x1p31, row[0] * row[1] == Double(row.count - 2) else {
        throw damaged("its kept answer makes no sense")
      }
      numbers["engine/answer"] = row
    }
    guard let counts = numbers["engine/step"], counts.allSatisfy({ $0.isFinite && abs($0) < 9e15 }), counts.count == 9, counts[0] >= 0, counts[1] >= 0,
      counts[2] >= -1, counts[3] >= 0, counts[3] < Double(Request.Kind.allCases.count), counts[4] >= 0, counts[5] >= 0, counts[6] >= 0, counts[5] < 0x1_0000_0000, counts[6] < 0x1_0000_0000,
      let ts = numbers["engine/tensor_steps"], ts.allSatisfy({ $0.isFinite && $0 >= 0 && $0 < 9e15 })
    else { throw damaged("its counters make no sense") }
    for (s, v) in values { for (k, value) in v { s.replace(0, k, value) } }
    o.restore(numbers)
    for row in rows {
      let b = o.bound[row.tensor]
      let stage = row.index < 0 ? "engine" : "\(row.stage.id).\(row.stage.name)"
      guard let f = found["\(b.name)/\(stage)/\(row.slot.name)"] else { continue }
      let target = o.storage(row)
      if target.bytes > 0, let p = body.baseAddress { target.base.copyMemory(from: p + f.start, byteCount: target.bytes) }
    }
  }

  /// Whether bytes that begin so may be a checkpoint: looked at before room for all of them is asked for.
  /// Throws TW_ERROR_FORMAT.
  package static func begins(_ first: UnsafeRawBufferPointer, of size: Int) throws(Failure) {
    guard first.count >= 8, let length = first.baseAddress?.loadUnaligned(as: UInt64.self), length >= 2,
      length <= UInt64(headerLimit), Int(length) <= size - 8
    else {
      throw Failure(Status.format, "not a usable thalweg checkpoint: its \(size) bytes do not begin with a header")
    }
  }
}

/// Just enough JSON for the header: objects of strings, objects, and lists of whole numbers. Everything else is refused.
private struct JSON {
  enum Value {
    case string(String)
    case numbers([Int])
    case object([(String, Value)])
  }
  private let b: [UInt8]
  private var i = 0
  private var depth = 0
  init(_ bytes: [UInt8]) { b = bytes }

  private mutating func space() { while i < b.count, b[i] == 32 || b[i] == 9 || b[i] == 10 || b[i] == 13 { i += 1 } }
  private mutating func take(_ c: Character) -> Bool {
    space()
    guard i < b.count, b[i] == c.asciiValue else { return false }
    i += 1
    return true
  }

  mutating func object() -> [(String, Value)]? {
    depth += 1
    defer { depth -= 1 }
    guard depth < 4, take("{") else { return nil }
    var list: [(String, Value)] = []
    if take("}") { return list }
    repeat {
      guard let key = string(), take(":"), let v = value() else { return nil }
      list.append((key, v))
    } while take(",")
    guard take("}") else { return nil }
    return list
  }

  private mutating func value() -> Value? {
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
          guard i + 5 < b.count, let code = UInt8(String(decoding: b[(i + 2)..<(i + 6)], as: UTF8.self), radix: 16) else { return nil }
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
