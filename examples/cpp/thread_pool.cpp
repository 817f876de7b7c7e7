// The steps of an optimizer on the threads of its host.
//
// A host with a thread pool hands it to the library, which then starts no threads of its own: an executor runs
// task(0), ... task(count - 1) in any order and returns when all are done.  Results do not depend on who runs them.
//
//   c++ -std=c++17 -O2 -pthread thread_pool.cpp $(pkg-config --cflags --libs thalweg) -o thread_pool && ./thread_pool
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <set>
#include <thalweg/thalweg.hpp>
#include <thread>
#include <vector>

namespace {

/// What a host has anyway: threads that wait for work, one job at a time.
class Pool {
 public:
  explicit Pool(int count) {
    for (int i = 0; i < count; ++i) threads_.emplace_back([this] { serve(); });
  }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  ~Pool() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      over_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  /// The executor: every task once, then back.  Steps of several optimizers may come at the same time.
  void operator()(thalweg::Task task, std::size_t count) {
    const std::lock_guard<std::mutex> one_job(jobs_);
    std::unique_lock<std::mutex> lock(mutex_);
    task_ = &task;
    count_ = count;
    left_ = count;
    next_ = 0;
    wake_.notify_all();
    done_.wait(lock, [this] { return left_ == 0; });
    task_ = nullptr;
    count_ = 0;
  }

  std::size_t tasks() const { return tasks_; }
  const std::set<std::thread::id>& workers() const { return workers_; }

 private:
  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return over_ || next_ < count_; });
      if (over_) return;
      while (next_ < count_) {
        const std::size_t index = next_++;
        const thalweg::Task task = *task_;
        lock.unlock();
        task(index);
        lock.lock();
        ++tasks_;
        workers_.insert(std::this_thread::get_id());
        if (--left_ == 0) done_.notify_one();
      }
    }
  }

  std::mutex jobs_, mutex_;
  std::condition_variable wake_, done_;
  const thalweg::Task* task_ = nullptr;
  std::size_t count_ = 0, next_ = 0, left_ = 0, tasks_ = 0;
  bool over_ = false;
  std::set<std::thread::id> workers_;
  std::vector<std::thread> threads_;  // last: they use what stands above
};

const char* const sentence = "clip_global_norm(1.0) | adamw(lr=1e-3)";

/// Some steps on a matrix of a million elements and a vector; the gradients are made up.
std::vector<float> train() {
  constexpr int rows = 1000, columns = 1000, steps = 10;
  std::vector<float> w(rows * columns), b(rows, 1), dw(w.size()), db(b.size());
  for (std::size_t i = 0; i < w.size(); ++i) w[i] = 1e-3f * static_cast<float>(i % 1009);
  thalweg::Optimizer optimizer(sentence);
  optimizer.add_parameters({thalweg::Tensor(w, {rows, columns}), thalweg::Tensor(b)});
  optimizer.bind_gradients({thalweg::Tensor(dw, {rows, columns}), thalweg::Tensor(db)});
  for (int step = 0; step < steps; ++step) {
    for (std::size_t i = 0; i < w.size(); ++i) dw[i] = w[i] - 0.5f;
    for (std::size_t i = 0; i < b.size(); ++i) db[i] = b[i];
    optimizer.step();
  }
  w.insert(w.end(), b.begin(), b.end());
  return w;
}

int run() {
  thalweg::set_num_threads(3);  // into how many parts a step is cut
  const std::vector<float> own = train();
  std::vector<float> hosted;
  {
    Pool pool(3);
    thalweg::set_executor(pool);
    hosted = train();
    thalweg::set_executor(nullptr);  // before the pool ends
    std::printf("thalweg %s\n%s\n", thalweg::version().data(), sentence);
    std::printf("%zu tasks on %zu threads of the host, %s\n", pool.tasks(), pool.workers().size(),
                hosted == own ? "the same bits as on the library's own" : "OTHER BITS");
    if (pool.tasks() < 20 || pool.workers().count(std::this_thread::get_id()) != 0) return EXIT_FAILURE;
  }
  return hosted == own && train() == own ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace

int main() {
  try {
    return run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
  }
  return EXIT_FAILURE;
}
