// The Python module of one room's CUDA kernels in emulation: their own bindings, and what the tests set.
//
// PROSMA_BINDINGS is the file of the bindings, PROSMA_ROOM the function of it that fills the module.
#include PROSMA_BINDINGS

namespace emulation {

void set_order(int seed);
void set_chip(int major, int minor);

}  // namespace emulation

PYBIND11_MODULE(emulated, module) {
    module.attr("cuda") = true;
    module.def("set_order", &emulation::set_order);
    module.def("set_chip", &emulation::set_chip);
    prosma::bindings::PROSMA_ROOM(module);
}
