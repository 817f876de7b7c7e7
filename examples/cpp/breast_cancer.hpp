// The data of the examples: examples/data/breast_cancer.csv, split and standardised.
#ifndef BREAST_CANCER_HPP
#define BREAST_CANCER_HPP

#include <cmath>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

constexpr std::size_t features = 30;

/// Rows of measurements, and the class of each row (0 malignant, 1 benign).
struct DataSet {
  std::vector<double> x, y;

  std::size_t rows() const { return y.size(); }
  const double* row(std::size_t i) const { return x.data() + i * features; }
};

/// Reads the file: a header "rows,features,names...", then one row a line.  Every fifth row goes to the test set.
inline void read(const std::string& path, DataSet& training, DataSet& test) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(path + " cannot be opened");
  std::string header;
  std::getline(file, header);
  const std::size_t rows = std::stoul(header);
  for (std::size_t i = 0; i < rows; ++i) {
    DataSet& to = i % 5 == 0 ? test : training;
    double value = 0;
    char comma = ',';
    for (std::size_t j = 0; j < features; ++j) {
      if (!(file >> value >> comma))
        throw std::runtime_error("row " + std::to_string(i + 1) + " is not understood");
      to.x.push_back(value);
    }
    if (!(file >> value)) throw std::runtime_error("row " + std::to_string(i + 1) + " has no class");
    to.y.push_back(value);
  }
}

/// Shifts and scales each feature to mean 0 and variance 1 on the training set.
inline void standardise(DataSet& training, DataSet& test) {
  for (std::size_t j = 0; j < features; ++j) {
    double mean = 0, variance = 0;
    const double n = static_cast<double>(training.rows());
    for (std::size_t i = 0; i < training.rows(); ++i) mean += training.row(i)[j] / n;
    for (std::size_t i = 0; i < training.rows(); ++i) variance += std::pow(training.row(i)[j] - mean, 2) / n;
    for (DataSet* data : {&training, &test}) {
      for (std::size_t i = 0; i < data->rows(); ++i) {
        double& x = data->x[i * features + j];
        x = (x - mean) / std::sqrt(variance);
      }
    }
  }
}

#endif
