import ThalwegCore

/// Passes that treat parts of a tensor by themselves go through it together, strip after strip: what one leaves lies in
/// the cache when the next comes, and is not fetched from memory again. The bits are the same.
extension Optimizer {
  struct StripTask {
    var tensor: Int
    var elements: Swift.Range<Int>
  }
  /// Elements of a strip, where lines do not ask for more: with a gradient and some state so many fit into a
  /// second-level cache.
  private static let usualStrip = 16_384, longestStrip = Walker.taskBlocks * Walker.block

  /// Finds the segments that go through strips of a tensor: several in a row, whole-tensor stages among them.
  func planStrips(_ i: Int) {
    let r = records + i, segments = branches[r.pointee.branch].segments
    (r.pointee.stripped, r.pointee.strip) = (0..<0, 0)
    guard r.pointee.count > 0 else { return }
    var first = 0, unit = Program.chunk, wholes = 0, walks = 0
    func close(_ end: Int) {
      guard r.pointee.strip == 0, wholes > 0, walks > 0 else { return }
      r.pointee.stripped = first..<end
      r.pointee.strip = min(r.pointee.count, max(unit, Optimizer.usualStrip / unit * unit))
      r.pointee.scratchesInStrips =
        !branches[r.pointee.branch].keepsGradient
        && !segments.indices.contains { k in
          !r.pointee.stripped.contains(k) && segments[k].contains { $0.scratches }
        }
    }
    for (k, segment) in segments.enumerated() {
      let needs = segment.reduce(Optional(unit)) { sum, pass in sum.flatMap { self.unit(pass, i, $0) } }
      if let needs {
        unit = needs
        for pass in segment { (wholes, walks) = pass.isWhole ? (wholes + 1, walks) : (wholes, walks + 1) }
      } else {
        close(k)
        (first, unit, wholes, walks) = (k + 1, Program.chunk, 0, 0)
      }
    }
    close(segments.count)
  }

  /// The least number of elements by which strips of tensor i advance that suits a pass too; nil: it takes sums, or
  /// needs the whole tensor.
  private func unit(_ pass: Branch.Pass, _ i: Int, _ unit: Int) -> Int? {
    guard let s = pass.stage, let whole = s.whole else { return pass.measured == nil ? unit : nil }
    let b = bound[i], n = b.view.count
    guard !whole.mayFail(s.hyper[records[i].group]), s.scalars.isEmpty, s.source == nil,
      slots(s, b).allSatisfy({ $0.count == nil && format($0, b) == .direct }), let lines = lines(s, i)
    else { return nil }
    let one = n <= Optimizer.longestStrip ? n : nil  // a tensor that is one strip suits all
    guard lines <= Optimizer.longestStrip, unit != n else { return one }
    let common = unit / Optimizer.divisor(unit, lines) * lines
    return common <= Optimizer.longestStrip ? common : one
  }
  /// Elements of the smallest part of tensor i that a stage treats by itself; nil: it needs the whole.
  func lines(_ s: Stage, _ i: Int) -> Int? {
    let shape = bound[i].shape, n = bound[i].view.count
    guard n > 0, let length = shape.dimensions.first,
      let grain = s.whole?.grain(s.hyper[records[i].group], shape), grain > 0
    else { return nil }
    let (lines, tooMany) = grain.multipliedReportingOverflow(by: n / length)
    return tooMany ? nil : lines
  }
  /// The greatest common divisor.
  private static func divisor(_ a: Int, _ b: Int) -> Int { b == 0 ? a : divisor(b, a % b) }

  /// Room in every program for the largest strip, and for what whole-tensor stages need for one.
  func makeRoomForStrips(_ programs: [Program]) throws(Failure) {
    var strip = 0, work = 0
    for i in 0..<bound.count where records[i].strip > 0 {
      let size = records[i].size, bytes = aligned(records[i].strip * size), shape = shape(of: 0..<records[i].strip, i)
      strip = max(strip, bytes)
      for s in branches[records[i].branch].stages where lines(s, i) != nil {
        // and the parameters, where they are not dense in the compute type
        if let whole = s.whole { work = max(work, aligned(whole.workspace(s.hyper[0], shape, size)) + bytes) }
      }
    }
    if strip > 0 { for p in programs { try p.makeRoom(strip, work, allocator) } }
  }

  func cutStrips(_ i: Int) {
    let n = records[i].count, strip = records[i].strip
    guard strip > 0 else { return }
    let task = Optimizer.longestStrip / strip * strip
    for start in stride(from: 0, to: n, by: task) {
      stripTasks.append(StripTask(tensor: i, elements: start..<min(start + task, n)))
    }
  }

  /// Whether a segment goes through strips of this tensor.
  @inline(__always)
  func goesInStrips(_ r: UnsafeMutablePointer<Record>, _ segment: Int) -> Bool {
    r.pointee.stripped.contains(segment) && !branches[r.pointee.branch].stopsAtMove && !sharesElements
  }

  /// Whether strips end the step of this tensor with a whole-tensor stage, and can mark what it leaves.
  func marksInStrips(_ r: UnsafeMutablePointer<Record>) -> Bool {
    let last = branches[r.pointee.branch].segments.count - 1
    return goesInStrips(r, last) && !branches[r.pointee.branch].marksInWalk
  }

  /// The shape of a part of tensor i along its first axis.
  func shape(of part: Swift.Range<Int>, _ i: Int) -> Shape {
    var shape = bound[i].shape
    if part.count < records[i].count { shape.dimensions[0] = part.count / (records[i].count / shape.dimensions[0]) }
    return shape
  }

  /// Runs all passes of the strips that begin at a segment.
  func runStrips(_ segment: Int) throws(Failure) {
    func begins(_ task: StripTask) -> Bool {
      let r = records + task.tensor
      return r.pointee.active && r.pointee.stripped.lowerBound == segment && goesInStrips(r, segment)
    }
    guard stripTasks.contains(where: begins) else { return }
    try runTasks(stripTasks.count, programs, tensor: { stripTasks[$0].tensor }) { (t, program) throws(Failure) in
      if begins(stripTasks[t]) { try run(stripTasks[t], program) }
    }
  }

  private func run(_ task: StripTask, _ program: Program) throws(Failure) {
    let r = records + task.tensor, branch = branches[r.pointee.branch]
    let marks = r.pointee.watched && !mayFail && marksInStrips(r)
    defer { program.lend(from: nil) }
    for start in stride(from: task.elements.lowerBound, to: task.elements.upperBound, by: r.pointee.strip) {
      let part = start..<min(start + r.pointee.strip, task.elements.upperBound)
      if r.pointee.scratchesInStrips { program.lend(from: start * r.pointee.size) }
      for segment in r.pointee.stripped {
        for pass in branch.segments[segment] {
          if pass.isWhole {
            let scratch = pass.makesGradient ? r.pointee.second : program.scratch(r)
            try runFinite(task.tensor, pass, part, scratch, program.workspace)
          } else {
            program.begin(r, at: start)
            lay(pass, branch, program, r)
            program.execute(part.count, partials)
          }
        }
      }
      if marks { mark(r, part) }
    }
  }
}
