from ..plan import Plan as CudaPlan
